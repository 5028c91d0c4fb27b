//go:build integration

package integration

import (
	"bytes"
	"errors"
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

	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// outcome is what a command that ended has left.
type outcome struct {
	code           int
	stdout, stderr string
}

// sandboxdCommand runs sandboxd to its end with the text given as standard input.
func sandboxdCommand(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	return finish(t, stdin, exec.Command(sandboxd, args...))
}

func finish(t *testing.T, stdin string, cmd *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Bad input: a message that names it, exit code 2, nothing on standard output,
// nothing left (issue 2).
func TestBadInput(t *testing.T) {
	good := shellFunction(t, shellBootstrap)
	noClient := []string{"awslambdaric", "pip install"}
	if _, err := os.Stat("/usr/bin/python3.11"); err != nil { // the interpreter is looked for first
		noClient = []string{"python3.11", "interpreter"}
	}
	occupied, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer occupied.Close()
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
		{"escaping zip", []string{zipFile(t, "../evil", 0o755, text("x"))}, []string{"../evil"}},
		{"absolute zip", []string{zipFile(t, "/etc/evil", 0o755, text("x"))}, []string{"/etc/evil"}},
		{"zip with an escaping link", []string{zipFile(t, "bootstrap", 0o777|fs.ModeSymlink, text("../../../etc/passwd"))}, []string{"bootstrap"}},
		{"zip with a device", []string{zipFile(t, "bootstrap", 0o644|fs.ModeDevice|fs.ModeCharDevice, text(""))}, []string{"bootstrap"}},
		{"zip over the limit", []string{zipFile(t, "bootstrap", 0o755, zeros(251<<20))}, []string{"250"}},
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
		{"no such base", []string{"--rootfs=/nonexistent/base", good}, []string{"/nonexistent/base"}},
		{"no such configuration", []string{"--config=/nonexistent/config", good}, []string{"/nonexistent/config"}},
		{"configuration with an unknown key", []string{config(t, "memory: 128\nnonsense: 1\n"), good}, []string{"nonsense", ":2"}},
		{"configuration with a bad value", []string{config(t, "memory: lots\n"), good}, []string{"memory", "lots"}},
		{"free-form seccomp profile", []string{config(t, "seccomp: unconfined\n"), good}, []string{"seccomp", "unconfined", "debug"}},
		{"port in use", []string{"--listen=" + occupied.Addr().String(), good}, []string{occupied.Addr().String(), "in use"}},
		{"bad address", []string{"--listen=nowhere", good}, []string{"--listen", "nowhere"}},
		{"event is not JSON", []string{"--event=-", good}, []string{"--event", "JSON"}},
		{"no such event", []string{"--event=/nonexistent/event", good}, []string{"/nonexistent/event"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFolders(t)
			// A configuration that is accepted by mistake must end too.
			args := slices.Concat([]string{"run", "--listen=127.0.0.1:0"}, f.Flags(), c.args)
			out := sandboxdCommandWithin(t, "not json", args...)
			wantUsageError(t, out, c.want)
		})
	}
}

// sandboxdCommandWithin is sandboxdCommand for commands that might serve for ever if
// they are wrong: they are asked to end when they serve.
func sandboxdCommandWithin(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	var stdout bytes.Buffer
	book := testdaemon.NewBook()
	cmd := exec.Command(sandboxd, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, book
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		if _, ok := book.Wait(patience, func(line string) bool { return strings.Contains(line, "msg=listening") }); ok {
			cmd.Process.Signal(syscall.SIGTERM)
		}
	}()
	var exit *exec.ExitError
	err := cmd.Wait()
	book.End()
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), book.Text()}
}

// wantUsageError checks exit code 2 and a message with every part wanted.
func wantUsageError(t *testing.T, out outcome, want []string) {
	t.Helper()
	if out.code != 2 {
		t.Errorf("exit code %d, want 2", out.code)
	}
	for _, part := range want {
		if !strings.Contains(out.stderr, part) {
			t.Errorf("no %q in the message: %s", part, out.stderr)
		}
	}
	if out.stdout != "" {
		t.Errorf("standard output: %s", out.stdout)
	}
	if strings.Contains(out.stderr, "goroutine ") || strings.Contains(out.stderr, "panic") {
		t.Errorf("a crash: %s", out.stderr)
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
	writeFile(t, filepath.Join(dir, name), content, mode)
	return dir
}

// foreignProgram is the test runtime with the machine of another architecture in its
// ELF header (e_machine, at 18): AArch64 is 183.
func foreignProgram(t *testing.T) []byte {
	t.Helper()
	program := readFile(t, filepath.Join(testbin, actor))
	program[18], program[19] = 183, 0
	return program
}

// corruptZip makes a zip whose content is damaged, its directory being whole.
func corruptZip(t *testing.T) string {
	t.Helper()
	path := zipFile(t, "bootstrap", 0o755, bytes.NewReader(shellBootstrap))
	data := readFile(t, path)
	for i := 60; i < 120; i++ {
		data[i] ^= 0xff
	}
	writeFile(t, path, data, 0o644)
	return path
}

// Without root: said, and how to get it (issue 2).
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
	writeFile(t, binary, readFile(t, sandboxd), 0o755)
	code := shellFunction(t, shellBootstrap)
	cmd := exec.Command(binary, "run", "--event=-", code)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	wantUsageError(t, finish(t, "{}", cmd), []string{"root", "sudo"})
}

// A host without cgroups: said, and what is missing (issue 2). The host is this one,
// in a mount namespace where they are hidden.
func TestHostWithoutCgroups(t *testing.T) {
	f := newFolders(t)
	args := slices.Concat([]string{"run", "--event=-"}, f.Flags(), []string{shellFunction(t, shellBootstrap)})
	out := finish(t, "{}", withoutCgroups(args...))
	wantUsageError(t, out, []string{"cgroup", "fix"})
}

// withoutCgroups runs sandboxd in a mount namespace that has no cgroup tree.
func withoutCgroups(args ...string) *exec.Cmd {
	const script = `umount -R -l /sys/fs/cgroup && exec "$0" "$@"`
	return exec.Command("unshare", slices.Concat([]string{"-m", "sh", "-c", script, sandboxd}, args)...)
}
