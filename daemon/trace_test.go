package daemon

import (
	"os"
	"path/filepath"
	"testing"
)

// The file for traces is made only if they are wanted.
func TestOpenTraces(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	for _, wanted := range []bool{false, true} {
		f, err := openTraces(wanted, dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString("x\n"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "trace.jsonl")); (err == nil) != wanted {
			t.Errorf("wanted %v: %v", wanted, err)
		}
	}
}
