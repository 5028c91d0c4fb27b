// Package harness is what the end-to-end tests share: daemons as tests run them, functions
// and extensions to run in them, and what the host shows of both. A package of tests calls
// [Main] from its TestMain.
//
// Helpers take the test that they are for, fail it and end it; only its goroutine may call
// those that do. The doc comment of package integration says what a run needs.
package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What the tests run, set once in Main. The paths are absolute.
var (
	Sandboxd string // the binary under test
	Testbin  string // folder of the test programs
	Examples string // the examples folder
)

// root is the root of the project from the folder of a package of tests, which is what it
// has as its working directory.
const root = "../.."

// Main runs the tests of a package and ends the process.
func Main(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getuid() != 0 {
		return 1, errors.New("these tests need root")
	}
	var err error
	if Sandboxd, err = Existing("SANDBOXD", filepath.Join(root, "bin/sandboxd")); err != nil {
		return 1, fmt.Errorf("%w: run make build, or set SANDBOXD", err)
	}
	if Examples, err = Existing("SANDBOXD_EXAMPLES", filepath.Join(root, "examples")); err != nil {
		return 1, err
	}
	if Testbin = os.Getenv("SANDBOXD_TESTBIN"); Testbin == "" {
		dir, err := os.MkdirTemp("", "sandboxd-testbin")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		script := filepath.Join(root, "scripts/test-programs.sh")
		if out, err := exec.Command(script, dir).CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build the test programs: %w\n%s", err, out)
		}
		Testbin = dir
	}
	if Testbin, err = filepath.Abs(Testbin); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// Existing is the absolute path of a file that an environment variable names, or of
// otherwise without one. It is an error if the file does not exist.
func Existing(variable, otherwise string) (string, error) {
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
