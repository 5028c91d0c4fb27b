//go:build integration

package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/seal"
)

// sandboxd runs a command, and returns what it prints, and its errors.
func sandboxd(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, harness.Sandboxd, args...).CombinedOutput()
	return string(out), err
}

// mustRun is sandboxd for what must succeed.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, err := sandboxd(t, args...)
	if err != nil {
		t.Fatalf("sandboxd %q: %v: %s", args, err, out)
	}
	return out
}

// mustFail is sandboxd for what must fail with that text.
func mustFail(t *testing.T, want string, args ...string) {
	t.Helper()
	if out, err := sandboxd(t, args...); err == nil || !strings.Contains(out, want) {
		t.Errorf("sandboxd %q: %v: %s; want %q", args, err, out, want)
	}
}

// backup makes a backup in a new folder and returns its path. There is nothing else.
func (d *keyed) backup(args ...string) string {
	d.T.Helper()
	path := filepath.Join(d.T.TempDir(), "b")
	mustRun(d.T, append([]string{"backup", path, "--run-dir", d.Folders.Run}, args...)...)
	wantFiles(d.T, filepath.Dir(path), "b")
	return path
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		t.Errorf("%s has %q, want %q", dir, names, want)
	}
}

// restore runs the command for the folders of another host.
func restore(f harness.Folders, path string, args ...string) []string {
	return append([]string{"restore", path, "--state-dir", f.State, "--run-dir", f.Run}, args...)
}

func description(t *testing.T, c *lambda.Client, name string) int {
	t.Helper()
	out, err := c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: &name})
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(aws.ToString(out.Description))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// describe gives a function a description, once an update that runs is over.
func describe(t *testing.T, c *lambda.Client, name string, n int) error {
	if err := lambda.NewFunctionUpdatedV2Waiter(c).Wait(t.Context(), &lambda.GetFunctionInput{FunctionName: &name}, harness.Patience); err != nil {
		return err
	}
	_, err := c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: &name, Description: aws.String(strconv.Itoa(n))})
	return err
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, harness.ReadFile(t, from), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A backup is made while functions change, and is what the store was at one moment. On another
// host, with the host key, its functions run, and can be read and changed.
func TestBackupAndRestore(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t))
	first := d.first()
	c := d.client(first)
	d.create(c, "a", "secret-of-a")
	d.create(c, "b", "secret-of-b")
	for _, name := range []string{"a", "b"} {
		if err := describe(t, c, name, 0); err != nil {
			t.Fatal(err)
		}
	}
	stop, last := make(chan struct{}), make(chan int)
	go func() { // b follows a
		n := 0
		defer func() { last <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			n++
			for _, name := range []string{"a", "b"} {
				if err := describe(t, c, name, n); err != nil {
					t.Errorf("update %d of %s: %v", n, name, err)
					return
				}
			}
		}
	}()
	path := d.backup()
	close(stop)
	n := <-last
	content := harness.ReadFile(t, path)
	key := harness.ReadFile(t, filepath.Join(d.Folders.State, "host.key"))
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for _, line := range strings.Fields(string(key)) {
		if strings.HasPrefix(line, "sandboxd-host-key") && bytes.Contains(content, []byte(line[len(line)-32:])) {
			t.Error("the host key is in the backup")
		}
	}
	for _, secret := range []string{"secret-of-a", first.secret} {
		if bytes.Contains(content, []byte(secret)) {
			t.Errorf("%q is in the backup", secret)
		}
	}
	mustFail(t, "it exists already", "backup", path, "--run-dir", d.Folders.Run)

	other := harness.NewFolders(t)
	ring, err := seal.Parse(key)
	if err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, restore(other, path)...); !strings.Contains(out, "need the host key "+ring.IDs()[0]) {
		t.Errorf("restore without a host key: %s", out)
	}
	mustFail(t, "copy it there from the host or the backup", append([]string{"serve", "--listen=127.0.0.1:0"}, other.Flags()...)...)
	copyFile(t, filepath.Join(d.Folders.State, "host.key"), filepath.Join(other.State, "host.key"))
	d2 := serveKeyed(t, other)
	c2 := d2.client(first)
	a, b := description(t, c2, "a"), description(t, c2, "b")
	t.Logf("%d updates; the backup has a at %d and b at %d", n, a, b)
	if b > a || a > b+1 || a > n {
		t.Errorf("the backup has a at %d and b at %d, after %d updates", a, b, n)
	}
	for _, name := range []string{"a", "b"} {
		if got := invoke(t.Context(), c2, name); got != `"secret-of-`+name+`"` {
			t.Errorf("%s on the other host: %s", name, got)
		}
		out, err := c2.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: &name})
		if err != nil || out.Environment == nil || out.Environment.Variables["NAME"] != "secret-of-"+name {
			t.Errorf("the environment of %s: %+v, %v", name, out, err)
		}
	}
	if err := describe(t, c2, "a", n+1); err != nil || description(t, c2, "a") != n+1 {
		t.Errorf("a change on the other host: %v", err)
	}
	if got := invoke(t.Context(), c, "a"); got != `"secret-of-a"` {
		t.Errorf("on the first host: %s", got)
	}
	mustFail(t, "a daemon uses --state-dir", restore(other, path)...)
	d2.Stop()
	mustFail(t, "is not empty", restore(other, path)...)
}

// With the host key in it, a backup is all that the other host needs.
func TestBackupWithHostKey(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t))
	first := d.first()
	d.create(d.client(first), "f", "x")
	path := d.backup("--with-host-key")
	other := harness.NewFolders(t)
	mustRun(t, restore(other, path)...)
	info, err := os.Stat(filepath.Join(other.State, "host.key"))
	if err != nil || info.Mode() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("%v, %v", info, err)
	}
	if got := invoke(t.Context(), serveKeyed(t, other).client(first), "f"); got != `"x"` {
		t.Error(got)
	}
}

// What is wrong with a backup is named before anything is made of it.
func TestRestoreRefuses(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t))
	d.create(d.client(d.first()), "f", "x")
	path := d.backup()
	whole := harness.ReadFile(t, path)
	other := harness.NewFolders(t)
	damaged := filepath.Join(t.TempDir(), "damaged")
	for name, content := range map[string][]byte{
		"cut":     whole[:len(whole)-40],
		"flipped": append(append(bytes.Clone(whole[:len(whole)/2]), whole[len(whole)/2]^1), whole[len(whole)/2+1:]...),
		"longer":  append(bytes.Clone(whole), 0),
		"another": []byte("PK\x03\x04, and no backup at all"),
		"empty":   nil,
	} {
		if err := os.WriteFile(damaged, content, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := sandboxd(t, restore(other, damaged)...)
		if err == nil || !strings.Contains(out, damaged) || !strings.Contains(out, "check the backup: ") {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		wantFiles(t, other.State, "control.lock")
	}
	if err := seal.Create(filepath.Join(other.State, "host.key")); err != nil {
		t.Fatal(err)
	}
	mustFail(t, "take the file of the host that made the backup", restore(other, path)...)
	wantFiles(t, other.State, "control.lock", "host.key")
	if err := os.Remove(filepath.Join(other.State, "host.key")); err != nil {
		t.Fatal(err)
	}
	// What a restore leaves that was killed.
	if err := os.MkdirAll(filepath.Join(other.State, "control.partial", "store"), 0o700); err != nil {
		t.Fatal(err)
	}
	mustRun(t, restore(other, path)...)
	wantFiles(t, other.State, "control", "control.lock")
}

// A command that is killed leaves nothing that looks like a backup, and neither does one whose
// disk is full. One that waits when the control process is killed is answered by the next one.
func TestBackupCutShort(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t))
	d.create(d.client(d.first()), "f", "x")
	dir := t.TempDir()
	// begin starts a command, which waits for a control process that is stopped.
	begin := func() (cmd *exec.Cmd, out *bytes.Buffer, control int) {
		t.Helper()
		pids := d.processes("sandboxd-control")
		if len(pids) != 1 {
			t.Fatalf("processes %v", pids)
		}
		if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		cmd, out = exec.Command(harness.Sandboxd, "backup", filepath.Join(dir, "b"), "--run-dir", d.Folders.Run), &bytes.Buffer{}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, harness.Patience, func() string {
			links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
			for _, l := range links {
				if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir+"/") {
					return ""
				}
			}
			return "the command has no file yet"
		})
		return cmd, out, pids[0]
	}
	cmd, _, control := begin()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	wantFiles(t, dir)
	if err := syscall.Kill(control, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}

	cmd, out, control := begin()
	if err := syscall.Kill(control, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	wantFiles(t, dir, "b")

	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(disk, "junk"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	mustFail(t, "no space left on device", "backup", disk, "--run-dir", d.Folders.Run)
	wantFiles(t, disk, "junk")
	if err := os.Remove(filepath.Join(disk, "junk")); err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, "backup", disk, "--run-dir", d.Folders.Run); !strings.Contains(out, filepath.Join(disk, "sandboxd-2")) {
		t.Errorf("%s", out)
	}
}

// Without a daemon there is no backup, and the error says what to do.
func TestBackupWithoutDaemon(t *testing.T) {
	f := harness.NewFolders(t)
	mustFail(t, "no daemon runs 'sandboxd serve'", "backup", t.TempDir(), "--run-dir", f.Run)
}

// The process that reads a backup is no root, and can use one folder. It ends with its command,
// and what it has made does not keep the next restore from its work.
func TestRestoreConfined(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t))
	d.create(d.client(d.first()), "f", "x")
	path := d.backup()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a database that never answers holds the process
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other := harness.NewFolders(t)
	cmd := exec.Command(harness.Sandboxd, restore(other, path, "--store", "postgres://u@"+l.Addr().String()+"/db?sslmode=disable")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept() // root's connection, which the process has asked for
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var p harness.Process
	for _, pid := range harness.PIDs(t) {
		if q, ok := harness.ReadProcess(pid); ok && q.Parent == cmd.Process.Pid {
			p = q
		}
	}
	info, err := os.Stat(filepath.Join(other.State, "control.partial"))
	if err != nil {
		t.Fatal(err)
	}
	uid := info.Sys().(*syscall.Stat_t).Uid
	ids := strings.TrimSpace(strings.Repeat(fmt.Sprintf("%d\t", uid), 4))
	const none = "0000000000000000"
	for name, want := range map[string]string{
		"Uid": ids, "Gid": ids, "Groups": "", "CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := p.Status(name); got != want {
			t.Errorf("%s of %q is %q, want %q", name, harness.Command(p.PID), got, want)
		}
	}
	if uid == 0 {
		t.Error("it is root")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	harness.Eventually(t, harness.Patience, func() string {
		if p.Alive() {
			return "the process is still there"
		}
		return ""
	})
	wantFiles(t, other.State, "control.lock", "control.partial")
	mustRun(t, restore(other, path)...)
	wantFiles(t, other.State, "control", "control.lock")
}
