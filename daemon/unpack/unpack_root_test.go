//go:build integration

package unpack

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host/hosttest"
	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/image"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// TestMain is also the process that takes apart what strangers have made: it tries what
// one could want that its input has taken over, and says what became of it.
func TestMain(m *testing.M) {
	if IsProcess() {
		var todo task
		err := gob.NewDecoder(os.Stdin).Decode(&todo)
		privileges := privileges() // once it is bounded it cannot ask
		if err == nil {
			err = todo.bound()
		}
		switch {
		case err != nil:
		case todo.about() == keepsOutput:
			err = unix.Sendmsg(firstFD, []byte("x"), unix.UnixRights(unix.Stdout), nil, 0)
		case todo.about() == hangs:
			_, err = io.ReadAll(os.NewFile(firstFD, "first")) // of which nobody closes the other end
		case todo.about() == crashes:
			panic("boom\x1b[2J")
		case todo.about() == exhausts:
			for held := [][]byte{}; ; {
				block := make([]byte, 16<<20)
				for i := 0; i < len(block); i += 4096 {
					block[i] = 1
				}
				held = append(held, block)
			}
		case todo.about() == works:
			for began, _ := cpuTime(os.Getpid()); ; { // as long as the other end is open
				if now, _ := cpuTime(os.Getpid()); now-began > 10*time.Millisecond && closed(firstFD) {
					break
				}
			}
			err = errors.New("worked")
		default:
			err = errors.New(attempts(todo.about(), privileges))
		}
		os.Stdout.Write(invalid.Encode(err))
		os.Exit(exitFailed)
	}
	if err := runc.SealSelf(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// What a process is told to do by the name of what it takes apart.
const (
	keepsOutput = "keeps its output" // in a message that nobody reads
	hangs       = "hangs"            // for ever
	works       = "works"            // until the other end of its first descriptor is closed
	crashes     = "crashes"          // by a panic
	exhausts    = "exhausts"         // the memory that it may have
)

// closed reports whether the other end of a pipe is.
func closed(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLHUP != 0
}

// about is the name in the task.
func (t *task) about() string {
	switch {
	case t.Zip != nil:
		return t.Zip.File
	case t.Read != nil:
		return t.Read.Image
	}
	return t.Unpack.Image
}

// attempts says what of the host can be had, with a listener of the host at addr. The
// second descriptor is a folder, or nothing. privileges are what it had before. The
// name of a socket with a path follows the address after a comma.
func attempts(about string, privileges []string) string {
	addr, socket, _ := strings.Cut(about, ",")
	var can []string
	try := func(what string, err error) {
		if err == nil {
			can = append(can, what)
		}
	}
	open := func(path string) error {
		f, err := os.Open(path)
		if err == nil {
			f.Close()
		}
		return err
	}
	try("shadow", open("/etc/shadow"))
	try("passwd", open("/etc/passwd"))
	try("hosts", open("/etc/hosts"))
	try("proc", open("/proc/self/status"))
	try("tmp", os.WriteFile(filepath.Join(os.TempDir(), "sandboxd-attempt"), nil, 0o600))
	os.Remove(filepath.Join(os.TempDir(), "sandboxd-attempt"))
	folder := fmt.Sprintf("/proc/self/fd/%d", firstFD+1)
	try("folder", errors.Join(os.Mkdir(folder+"/d", 0o700), os.WriteFile(folder+"/f", nil, 0o600)))
	try("link", os.Link(folder+"/f", folder+"/d/f"))
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		conn.Close()
	}
	try("connect", err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		l.Close()
	}
	try("listen", err)
	try("user", unix.Setresuid(0, 0, 0))
	try("namespace", unix.Unshare(unix.CLONE_NEWUSER))
	conn, err = net.Dial("unix", socket)
	if err == nil {
		conn.Close()
	}
	try("socket", err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = unix.Sendto(pair[0], nil, 0, &unix.SockaddrUnix{Name: socket + ".dgram"})
	}
	try("datagram", err)
	try("deathless", unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGCHLD), 0, 0, 0))
	try("execute", exec.Command("/proc/self/exe", "-test.run=^$").Run())
	can = append(can, privileges...)
	return fmt.Sprintf("user %d:%d of %s: %s", os.Getuid(), os.Getgid(), about, strings.Join(can, " "))
}

// privileges says what this process is that it should not be.
func privileges() []string {
	var can []string
	if privs, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || privs != 1 {
		can = append(can, "privs")
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil || caps != ([2]unix.CapUserData{}) {
		can = append(can, "caps")
	}
	if bound, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil || bound != 0 {
		can = append(can, "bounding")
	}
	return can
}

// What takes apart a zip or an image can do no more than it must: the files of the host,
// other processes, and the network are out of its reach, the network but for one that
// asks a registry (SEC-16, SEC-61). The same attempts of this
// process show what there would be to have.
func TestUnpackConfinement(t *testing.T) {
	hosttest.Need(t, confine.NeedLandlock(4))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir, err := os.MkdirTemp("", "unpack") // short enough for a socket, and everybody's
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	stream, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	datagrams, err := net.ListenPacket("unixgram", socket+".dgram")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(socket, 0o777), os.Chmod(socket+".dgram", 0o777)); err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String() + "," + socket
	log := logrus.New()
	log.SetOutput(io.Discard)
	for _, test := range []struct {
		want string
		p    unprivileged
	}{
		{"folder link", unprivileged{what: "zip", task: task{Zip: &extract.ZipJob{File: addr, Limits: extract.Limits{UnzippedBytes: 1}}}}},
		{"folder link", unprivileged{what: "layer", task: task{Unpack: &image.UnpackJob{Image: addr, Limits: image.Limits{Bytes: 1}}}}},
		{"", unprivileged{what: "image", task: task{Read: &image.ReadJob{Image: addr}}}},
		{"hosts connect", unprivileged{what: "image", task: task{Read: &image.ReadJob{Image: addr, Source: image.Registry}}, network: true}},
	} {
		p, want := test.p, test.want
		tree, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		p.about, p.files, p.idle, p.moves = addr, []*os.File{tree}, idleAlone, new(atomic.Int64)
		if strings.HasPrefix(want, "folder") {
			p.tree, p.files = tree, []*os.File{tree, tree}
		}
		const uid = 1 << 30
		got := p.run(context.Background(), uid, log)
		if text := strings.TrimSpace(fmt.Sprintf("user %d:%[1]d of %s: %s", uid, addr, want)); got == nil || strings.TrimSpace(got.Error()) != text {
			t.Errorf("%s, network %v: %v, want %s", p.what, p.network, got, text)
		}
	}
	control := attempts(addr, privileges())
	for _, what := range []string{"shadow", "passwd", "hosts", "proc", "tmp", "connect", "listen", "socket", "datagram", "deathless", "execute", "user", "privs", "caps", "bounding"} {
		if !strings.Contains(control+" ", " "+what+" ") {
			t.Errorf("control: not even this process can %q: %s", what, control)
		}
	}
}

// What is left open of an extraction that has ended keeps nobody waiting.
func TestUnpackEnds(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	log := logrus.New()
	log.SetOutput(io.Discard)
	p := unprivileged{what: "image", about: keepsOutput, task: task{Read: &image.ReadJob{Image: keepsOutput}}, files: []*os.File{theirs},
		idle: idleAlone, moves: new(atomic.Int64)}
	ended := make(chan error, 1)
	go func() { ended <- p.run(context.Background(), 1<<30, log) }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it failed, and nobody says so")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it is waited for")
	}
	var message [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	if n, oobn, _, _, err := unix.Recvmsg(pair[0], message[:], oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC); err != nil || n != 1 || oobn == 0 {
		t.Errorf("control: the message had no descriptor: %d, %d, %v", n, oobn, err)
	}
}

// A process that does nothing, as one that waits for what never comes, is ended, and the
// error says what it was about and what to do; not so one that works, or one that waits for
// such a one.
func TestUnpackHangs(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	begin := func(about string, moves *atomic.Int64) (ended chan error, release func()) {
		from, to, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p := unprivileged{what: "zip", about: about, task: task{Zip: &extract.ZipJob{File: about, Limits: extract.Limits{UnzippedBytes: 1}}},
			files: []*os.File{from}, idle: idleness{2 * time.Second, time.Millisecond}, moves: moves}
		ended = make(chan error, 1)
		go func() {
			defer from.Close()
			ended <- p.run(context.Background(), 1<<30, log)
		}()
		return ended, func() { to.Close() }
	}
	var moves atomic.Int64
	working, release := begin(works, &moves)
	waiting, releaseWaiting := begin(hangs, &moves)
	defer releaseWaiting() // not earlier: the garbage collector closes files that nobody has
	alone, releaseAlone := begin(hangs, new(atomic.Int64))
	defer releaseAlone()
	for i := range 2 { // what hangs alone ends first, although it began last; the other after who works
		select {
		case err := <-alone:
			if !errors.Is(err, errStalled) || !strings.Contains(err.Error(), "extract hangs: ") || !strings.Contains(err.Error(), "2s; check that") {
				t.Error(err)
			}
			release()
			alone = nil
			if err := <-working; err == nil || !strings.Contains(err.Error(), "worked") {
				t.Error(err)
			}
		case err := <-waiting:
			if i == 0 || !errors.Is(err, errStalled) {
				t.Errorf("%d: it has ended: %v", i, err)
			}
		case <-time.After(time.Minute):
			t.Fatal("it is waited for")
		}
	}
}

// Certificates that the operator names are found from another working directory.
func TestUnpackCertificates(t *testing.T) {
	t.Chdir("/etc")
	t.Setenv("SSL_CERT_FILE", "a:b.pem")
	t.Setenv("SSL_CERT_DIR", "ssl:/x")
	needs, env, _ := (&unprivileged{network: true}).confinement()
	for _, want := range []string{"SSL_CERT_FILE=/etc/a:b.pem", "SSL_CERT_DIR=/etc/ssl:/x"} {
		if !slices.Contains(env, want) {
			t.Errorf("%q lacks %s", env, want)
		}
	}
	for _, want := range []string{"/etc/a:b.pem", "/etc/ssl", "/x"} {
		if !slices.Contains(needs.Files, want) {
			t.Errorf("%q lacks %s", needs.Files, want)
		}
	}
}

// A process that ends by itself is an error that says why, what it was about, and what to do.
func TestUnpackDies(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	for about, want := range map[string]string{
		crashes:  `"panic: boom\x1b[2J"; report it to sandboxd's developers`,
		exhausts: "more memory than its limit of 512.0 MiB; leave out",
	} {
		p := unprivileged{what: "zip", about: about, task: task{Zip: &extract.ZipJob{File: about, Limits: extract.Limits{UnzippedBytes: 1 << 20}}},
			idle: idleAlone, moves: new(atomic.Int64)}
		err := p.run(t.Context(), 1<<30, log)
		if err == nil || !strings.Contains(err.Error(), about) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", about, err, want)
		}
	}
}

func TestFatalLine(t *testing.T) {
	for output, want := range map[string]string{
		"": "",
		"fatal error: stack overflow\n\nruntime stack:\n":                                                     "fatal error: stack overflow",
		"runtime: out of memory: cannot allocate 4194304-byte block (1 in use)\nfatal error: out of memory\n": "runtime: out of memory: cannot allocate 4194304-byte block (1 in use)",
		"SIGSYS: bad system call\nPC=0x1\n":                                                                   "SIGSYS: bad system call",
		"SIGSEGV: segmentation violation\nPC=0x43b25d m=4 sigcode=1 addr=0x0\n":                               "SIGSEGV: segmentation violation",
		"runtime/cgo: pthread_create failed: Resource temporarily unavailable\nSIGABRT: abort\n":              "runtime/cgo: pthread_create failed: Resource temporarily unavailable",
		"something\nelse\n\n": "else",
	} {
		if got := fatalLine([]byte(output)); got != want {
			t.Errorf("%q: %q, want %q", output, got, want)
		}
	}
}
