//go:build integration

package runc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

var initBinary []byte

// TestMain is also what libcontainer re-executes, and what SealSelf does.
func TestMain(m *testing.M) {
	if IsInit() {
		Init()
	}
	if err := SealSelf(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code, err := func() (int, error) {
		path := os.Getenv("SANDBOX_INIT")
		if path == "" {
			dir, err := os.MkdirTemp("", "sandbox-init")
			if err != nil {
				return 1, err
			}
			defer os.RemoveAll(dir)
			path = filepath.Join(dir, "sandbox-init")
			build := exec.Command("go", "build", "-trimpath", "-o", path, "../../cmd/sandbox-init")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				return 1, fmt.Errorf("build the init handler: %v\n%s", err, out)
			}
		}
		var err error
		if initBinary, err = os.ReadFile(path); err != nil {
			return 1, err
		}
		return m.Run(), nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// newEngine makes an engine that is closed, and seen to leave nothing, at the end.
func newEngine(t testing.TB) *Engine {
	t.Helper()
	host, err := DetectHost()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for p := dir; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	instance := fmt.Sprintf("test%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)
	e, err := New(Config{Instance: instance, RunDir: dir, InitBinary: initBinary, Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := e.Close(ctx); err != nil {
			t.Error(err)
		}
		for _, root := range host.roots() {
			if fileExists(filepath.Join(root, e.CgroupPath())) {
				t.Errorf("cgroup %s is left in %s", e.CgroupPath(), root)
			}
		}
	})
	return e
}
