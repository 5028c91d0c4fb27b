//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What the tests run, set once in TestMain.
var (
	sandboxd string // the binary under test
	testbin  string // folder of the test programs
	examples string // the examples folder
)

func TestMain(m *testing.M) {
	if calls := os.Getenv(injectee); calls != "" {
		os.Unsetenv(injectee) // the program's environment is without
		fmt.Fprintln(os.Stderr, "integration:", becomeInjectee(calls))
		os.Exit(1)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getuid() != 0 {
		return 1, fmt.Errorf("these tests need root")
	}
	var err error
	if sandboxd, err = existing("SANDBOXD", "../bin/sandboxd"); err != nil {
		return 1, fmt.Errorf("%w: run make build, or set SANDBOXD", err)
	}
	if examples, err = existing("SANDBOXD_EXAMPLES", "../examples"); err != nil {
		return 1, err
	}
	testbin = os.Getenv("SANDBOXD_TESTBIN")
	if testbin == "" {
		dir, err := os.MkdirTemp("", "sandboxd-testbin")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		if err := build(dir); err != nil {
			return 1, err
		}
		testbin = dir
	}
	if testbin, err = filepath.Abs(testbin); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// existing is the absolute path of a file that an environment variable names.
func existing(variable, otherwise string) (string, error) {
	path := os.Getenv(variable)
	if path == "" {
		path = otherwise
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	_, err = os.Stat(path)
	return path, err
}

// build makes the static programs that run inside sandboxes.
func build(dir string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/",
		"./actor", "./audit", "../examples/go-echo", "../examples/go-sigterm", "../examples/extension-go")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the test programs: %w\n%s", err, out)
	}
	return nil
}
