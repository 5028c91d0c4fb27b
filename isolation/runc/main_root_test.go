//go:build integration

package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/testtime"
)

// engine is the one of this process: the cgroup libraries remember a process's view of
// the tree, so a daemon has one, and so have the tests.
var engine *Engine

// auditProgram is integration/audit, built.
var auditProgram string

// TestMain is also what SealSelf re-executes.
func TestMain(m *testing.M) {
	if err := SealSelf(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code, err := func() (int, error) {
		path := os.Getenv("SANDBOX_INIT")
		auditProgram = filepath.Join(os.Getenv("SANDBOXD_TESTBIN"), "audit")
		if path == "" {
			dir, err := os.MkdirTemp("", "sandbox-init")
			if err != nil {
				return 1, err
			}
			defer os.RemoveAll(dir)
			path, auditProgram = filepath.Join(dir, "sandbox-init"), filepath.Join(dir, "audit")
			build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "../../cmd/sandbox-init", "../../integration/audit")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				return 1, fmt.Errorf("build the programs of the tests: %v\n%s", err, out)
			}
		}
		initBinary, err := os.ReadFile(path)
		if err != nil {
			return 1, err
		}
		return withEngine(initBinary, m.Run)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// withEngine runs the tests with an engine, and sees that it leaves nothing behind.
func withEngine(initBinary []byte, run func() int) (code int, err error) {
	host, err := DetectHost()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "engine")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		return 1, err
	}
	instance := fmt.Sprintf("test%d", os.Getpid())
	engine, err = New(Config{Instance: instance, RunDir: dir, InitBinary: initBinary, Host: host})
	if err != nil {
		return 1, err
	}
	code = run()
	ctx, cancel := context.WithTimeout(context.Background(), testtime.Limit(10*time.Second))
	defer cancel()
	err = engine.Close(ctx)
	for _, root := range host.roots() {
		// As whoever runs the tests sees it: this process no longer does.
		if fileExists(filepath.Join("/proc", strconv.Itoa(os.Getppid()), "root", root, host.CgroupFolder(instance))) {
			err = errors.Join(err, fmt.Errorf("cgroup %s is left in %s", host.CgroupFolder(instance), root))
		}
	}
	return code, err
}
