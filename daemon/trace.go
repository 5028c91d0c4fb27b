package daemon

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/sandboxd/sandboxd/internal/message"
)

// openTraces opens the file below stateDir for the spans of --trace-init, or /dev/null if
// wanted is false.
func openTraces(wanted bool, stateDir string) (*os.File, error) {
	if !wanted {
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	err := os.MkdirAll(stateDir, 0o700)
	var file *os.File
	if err == nil {
		file, err = os.OpenFile(filepath.Join(stateDir, message.TraceFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("--trace-init: %w", err)
	}
	return file, nil
}
