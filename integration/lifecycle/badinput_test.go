//go:build integration

package lifecycle

import (
	"bytes"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// Bad input: a message that names it, exit code 2, nothing on standard output,
// nothing left.
func TestBadInput(t *testing.T) {
	good := harness.ShellFunction(t, harness.ShellBootstrap)
	noClient := []string{"awslambdaric", "pip install"}
	if _, err := os.Stat("/usr/bin/python3.11"); err != nil { // the interpreter is looked for first
		noClient = []string{"python3.11", "interpreter"}
	}
	occupied, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer occupied.Close()
	layers := codeWith(t, "inner/x", nil, 0o644)
	zeros := func(n int64) io.Reader { return io.LimitReader(zero{}, n) }
	text := strings.NewReader

	for _, c := range []struct {
		name string
		args []string
		want []string // all in the message
	}{
		{"no such code", []string{"/nonexistent/code"}, []string{"/nonexistent/code"}},
		{"no code", nil, []string{"DIR or ZIP"}},
		{"missing bootstrap", []string{t.TempDir()}, []string{"bootstrap"}},
		{"bootstrap not executable", []string{codeWith(t, "bootstrap", []byte("#!/bin/sh\n"), 0o644)}, []string{"bootstrap", "execut"}},
		{"bootstrap is a folder", []string{codeWith(t, "bootstrap/x", nil, 0o644)}, []string{"bootstrap"}},
		{"bootstrap without interpreter", []string{codeWith(t, "bootstrap", []byte("#!/no/such/shell\n"), 0o755)}, []string{"bootstrap", "/no/such/shell"}},
		{"bootstrap of another architecture", []string{codeWith(t, "bootstrap", foreignProgram(t), 0o755)}, []string{"bootstrap", "arm64"}},
		{"unknown runtime", []string{"--runtime=cobol1.x", good}, []string{"cobol1.x"}},
		{"runtime without client", []string{"--runtime=python3.11", "--handler=app.handler", t.TempDir()}, noClient},
		{"corrupt zip", []string{corruptZip(t)}, []string{"function.zip"}},
		{"not a zip", []string{filepath.Join(codeWith(t, "function.zip", []byte("plain text"), 0o644), "function.zip")}, []string{"function.zip", "zip"}},
		{"escaping zip", []string{harness.ZipFile(t, "../evil", 0o755, text("x"))}, []string{"../evil"}},
		{"absolute zip", []string{harness.ZipFile(t, "/etc/evil", 0o755, text("x"))}, []string{"/etc/evil"}},
		{"zip with an escaping link", []string{harness.ZipFile(t, "bootstrap", 0o777|fs.ModeSymlink, text("../../../etc/passwd"))}, []string{"bootstrap"}},
		{"zip with a device", []string{harness.ZipFile(t, "bootstrap", 0o644|fs.ModeDevice|fs.ModeCharDevice, text(""))}, []string{"bootstrap"}},
		{"zip over the limit", []string{harness.ZipFile(t, "bootstrap", 0o755, zeros(251<<20))}, []string{"250"}},
		{"memory below 128", []string{"--memory=127", good}, []string{"--memory", "127", "128"}},
		{"memory above 10240", []string{"--memory=10241", good}, []string{"--memory", "10240"}},
		{"timeout 0", []string{"--timeout=0", good}, []string{"--timeout"}},
		{"timeout above 900 s", []string{"--timeout=901s", good}, []string{"--timeout", "15m"}},
		{"ephemeral storage", []string{"--ephemeral-storage=511", good}, []string{"--ephemeral-storage", "512"}},
		{"concurrency", []string{"--concurrency=0", good}, []string{"--concurrency"}},
		{"network", []string{"--network=moon", good}, []string{"--network"}},
		{"log format", []string{"--log-format=xml", good}, []string{"--log-format", "JSON"}},
		{"variable without value", []string{"--env=NAME", good}, []string{"--env", "NAME"}},
		{"variable with a bad name", []string{"--env=1X=2", good}, []string{"--env", "1X"}},
		{"reserved variable", []string{"--env=AWS_LAMBDA_FUNCTION_NAME=forged", good}, []string{"--env", "AWS_LAMBDA_FUNCTION_NAME", "reserved"}},
		{"variable of another mode", []string{"--env=AWS_LAMBDA_MAX_CONCURRENCY=4", good}, []string{"--env", "AWS_LAMBDA_MAX_CONCURRENCY", "reserved"}},
		{"function name", []string{"--function-name=a b", good}, []string{"--function-name", "a b"}},
		{"unknown flag", []string{"--nonsense", good}, []string{"--nonsense"}},
		{"six layers", append(slices.Repeat([]string{"--layer=" + t.TempDir()}, 6), good), []string{"--layer", "5"}},
		{"no such layer", []string{"--layer=/nonexistent/layer", good}, []string{"/nonexistent/layer"}},
		{"a layer inside another", []string{"--layer=" + filepath.Join(layers, "inner"), "--layer=" + layers, good}, []string{layers, "inner", "inside"}},
		{"layers that are mounts of one another", []string{"--layer=" + mountOf(t, filepath.Join(layers, "inner")), "--layer=" + layers, good}, []string{layers, "copies"}},
		{"no such base", []string{"--rootfs=/nonexistent/base", good}, []string{"/nonexistent/base"}},
		{"no such configuration", []string{"--config=/nonexistent/config", good}, []string{"/nonexistent/config"}},
		{"configuration with an unknown key", []string{harness.Config(t, "memory: 128\nnonsense: 1\n"), good}, []string{"nonsense", ":2"}},
		{"configuration with a bad value", []string{harness.Config(t, "memory: lots\n"), good}, []string{"memory", "lots"}},
		{"free-form seccomp profile", []string{harness.Config(t, "seccomp: unconfined\n"), good}, []string{"seccomp", "unconfined", "debug"}},
		{"port in use", []string{"--listen=" + occupied.Addr().String(), good}, []string{occupied.Addr().String(), "in use"}},
		{"bad address", []string{"--listen=nowhere", good}, []string{"--listen", "nowhere"}},
		{"event is not JSON", []string{"--event=-", good}, []string{"--event", "JSON"}},
		{"no such event", []string{"--event=/nonexistent/event", good}, []string{"/nonexistent/event"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := harness.NewFolders(t)
			// A configuration that is accepted by mistake must end too.
			args := slices.Concat([]string{"run", "--listen=127.0.0.1:0"}, f.Flags(), c.args)
			out := sandboxdCommandWithin(t, "not json", args...)
			wantUsageError(t, out, c.want)
		})
	}
}

// sandboxdCommandWithin is sandboxdCommand for commands that might serve for ever if
// they are wrong: they are asked to end when they serve.
func sandboxdCommandWithin(t *testing.T, stdin string, args ...string) harness.Outcome {
	t.Helper()
	var stdout bytes.Buffer
	p := testdaemon.New(exec.Command(harness.Sandboxd, args...))
	p.Cmd.Stdin, p.Cmd.Stdout, p.Cmd.Stderr = strings.NewReader(stdin), &stdout, p.Log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		if _, ok := p.Log.Wait(harness.Patience, func(line string) bool { return strings.Contains(line, "msg=listening") }); ok {
			_ = p.Signal(syscall.SIGTERM) // its exit code shows that it served
		}
	}()
	if err := p.Wait(2 * harness.Patience); err != nil {
		t.Error(err)
	}
	return harness.Outcome{Code: p.ExitCode(), Stdout: stdout.String(), Stderr: p.Log.Text()}
}

// wantUsageError checks exit code 2 and a message with every part wanted.
func wantUsageError(t *testing.T, out harness.Outcome, want []string) {
	t.Helper()
	if out.Code != 2 {
		t.Errorf("exit code %d, want 2", out.Code)
	}
	for _, part := range want {
		if !strings.Contains(out.Stderr, part) {
			t.Errorf("no %q in the message: %s", part, out.Stderr)
		}
	}
	if out.Stdout != "" {
		t.Errorf("standard output: %s", out.Stdout)
	}
	if strings.Contains(out.Stderr, "goroutine ") || strings.Contains(out.Stderr, "panic") {
		t.Errorf("a crash: %s", out.Stderr)
	}
}

// zero is an endless source of zero bytes.
type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// codeWith makes a code folder with one file.
func codeWith(t *testing.T, name string, content []byte, mode fs.FileMode) string {
	t.Helper()
	dir := t.TempDir()
	harness.WriteFile(t, filepath.Join(dir, name), content, mode)
	return dir
}

// foreignProgram is the test runtime with the machine of another architecture in its
// ELF header (e_machine, at 18): AArch64 is 183.
func foreignProgram(t *testing.T) []byte {
	t.Helper()
	program := harness.ReadFile(t, filepath.Join(harness.Testbin, harness.Actor))
	program[18], program[19] = 183, 0
	return program
}

// corruptZip makes a zip whose content is damaged, its directory being whole.
func corruptZip(t *testing.T) string {
	t.Helper()
	path := harness.ZipFile(t, "bootstrap", 0o755, bytes.NewReader(harness.ShellBootstrap))
	data := harness.ReadFile(t, path)
	for i := 60; i < 120; i++ {
		data[i] ^= 0xff
	}
	harness.WriteFile(t, path, data, 0o644)
	return path
}

// Without root: said, and how to get it.
func TestNotRoot(t *testing.T) {
	dir := t.TempDir()
	for p := dir; p != "/"; p = filepath.Dir(p) { // up to /tmp: nobody must get there
		if err := os.Chmod(p, 0o755|os.ModeSticky); err != nil && p == dir {
			t.Fatal(err)
		}
		if filepath.Dir(p) == os.TempDir() {
			break
		}
	}
	binary := filepath.Join(dir, "sandboxd")
	harness.WriteFile(t, binary, harness.ReadFile(t, harness.Sandboxd), 0o755)
	code := harness.ShellFunction(t, harness.ShellBootstrap)
	cmd := exec.Command(binary, "run", "--event=-", code)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	wantUsageError(t, harness.Finish(t, "{}", cmd), []string{"root", "sudo"})
}

// A host without cgroups: said, and what is missing. The host is this one,
// in a mount namespace where they are hidden.
func TestHostWithoutCgroups(t *testing.T) {
	f := harness.NewFolders(t)
	args := slices.Concat([]string{"run", "--event=-"}, f.Flags(), []string{harness.ShellFunction(t, harness.ShellBootstrap)})
	out := harness.Finish(t, "{}", withoutCgroups(args...))
	wantUsageError(t, out, []string{"cgroup", "fix"})
}

// withoutCgroups runs sandboxd in a mount namespace that has no cgroup tree.
func withoutCgroups(args ...string) *exec.Cmd {
	const script = `umount -R -l /sys/fs/cgroup && exec "$0" "$@"`
	return exec.Command("unshare", slices.Concat([]string{"-m", "sh", "-c", script, harness.Sandboxd}, args)...)
}

// mountOf returns a folder at which dir is mounted until the test ends.
func mountOf(t *testing.T, dir string) string {
	t.Helper()
	at := t.TempDir()
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}
