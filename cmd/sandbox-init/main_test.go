package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation/wire"
)

// All limits are written, a kernel may lack one, but not the first: then there is no
// /proc/sys and nothing would be limited.
func TestWriteLimits(t *testing.T) {
	dir := t.TempDir()
	for _, limit := range userLimits[:len(userLimits)-2] { // no fanotify
		if err := os.WriteFile(filepath.Join(dir, limit.name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeLimits(dir); err != nil {
		t.Fatal(err)
	}
	for _, limit := range userLimits[:len(userLimits)-2] {
		got, err := os.ReadFile(filepath.Join(dir, limit.name))
		if err != nil || string(got) != limit.value {
			t.Errorf("%s: %q, %v, want %q", limit.name, got, err, limit.value)
		}
	}
	if err := os.Remove(filepath.Join(dir, "max_user_namespaces")); err != nil {
		t.Fatal(err)
	}
	if err := writeLimits(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without max_user_namespaces: %v, want an error", err)
	}
}

// A limit that exists and cannot be written is fatal.
func TestWriteLimitsRefused(t *testing.T) {
	dir := t.TempDir()
	for _, limit := range userLimits {
		if err := os.Mkdir(filepath.Join(dir, limit.name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeLimits(dir); err == nil {
		t.Error("no error")
	}
}

// A limit of which the kernel takes only a part is not in force.
func TestWriteLimitInPart(t *testing.T) {
	var size unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &size); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "limit")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1, Max: size.Max}); err != nil {
		t.Fatal(err)
	}
	err := writeFile(path, "16")
	if back := unix.Setrlimit(unix.RLIMIT_FSIZE, &size); back != nil {
		t.Fatal(back)
	}
	if !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("%v, want a short write", err)
	}
}

func TestDaemonGone(t *testing.T) {
	for _, gone := range []error{unix.EPIPE, &wire.Error{Op: "send", Err: os.NewSyscallError("sendmsg", unix.EPIPE)}} {
		if err := daemonGone(gone); err != nil {
			t.Errorf("%v: %v, want nil", gone, err)
		}
	}
	if err := daemonGone(unix.EINVAL); err != unix.EINVAL {
		t.Errorf("EINVAL: %v", err)
	}
}

func TestLimitsComplete(t *testing.T) {
	entries, err := os.ReadDir("/proc/sys/user")
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, limit := range userLimits {
		known[limit.name] = true
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "max_") && !known[e.Name()] {
			t.Errorf("this kernel has %s, which the init handler does not limit", e.Name())
		}
	}
}
