//go:build integration

package recovery

import (
	"fmt"
	"os"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

func TestMain(m *testing.M) {
	if calls := os.Getenv(injectee); calls != "" {
		os.Unsetenv(injectee) // the program's environment is without
		fmt.Fprintln(os.Stderr, "integration:", becomeInjectee(calls))
		os.Exit(1)
	}
	harness.Main(m)
}
