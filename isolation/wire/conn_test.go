package wire

import (
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// pair returns both ends of a control socket.
func pair(t *testing.T) (daemon, handler *Conn) {
	t.Helper()
	local, remote, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	handler, err = NewConn(remote)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		local.Close()
		handler.Close()
	})
	return local, handler
}

// rawPair returns a Conn, and the other end as a descriptor that can send anything.
// With daemon the Conn is that of the daemon, else that of the handler.
func rawPair(t *testing.T, daemon bool) (*Conn, int) {
	t.Helper()
	local, remote, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if daemon {
		t.Cleanup(func() { local.Close(); remote.Close() })
		return local, int(remote.Fd())
	}
	handler, err := NewConn(remote)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { local.Close(); handler.Close() })
	return handler, int(local.file.Fd())
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// openFiles counts the descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func exec() Exec { return Exec{ID: 1, Path: "/bin/true", Argv: []string{"true"}, Dir: "/"} }

func TestConn(t *testing.T) {
	daemon, handler := pair(t)
	_, w := pipe(t)
	if err := daemon.Send(exec(), w, w, w); err != nil {
		t.Fatal(err)
	}
	m, files, err := handler.Recv()
	if err != nil || !reflect.DeepEqual(m, exec()) || len(files) != 3 {
		t.Fatalf("%#v, %d files, %v", m, len(files), err)
	}
	for _, f := range files {
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v, want close-on-exec", flags, err)
		}
		status, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil || status&unix.O_NONBLOCK != 0 {
			t.Errorf("status %#x, %v, want blocking", status, err)
		}
		f.Close()
	}
	for _, want := range []Message{Started{ID: 1, PID: 2}, Exited{ID: 1, Status: 9}} {
		if err := handler.Send(want); err != nil {
			t.Fatal(err)
		}
		if m, files, err := daemon.Recv(); err != nil || m != want || len(files) != 0 {
			t.Errorf("%#v, %v, %v, want %#v", m, files, err, want)
		}
	}
}

// The largest message travels, with the host's default socket buffer.
func TestLargestMessage(t *testing.T) {
	daemon, handler := pair(t)
	m := exec()
	empty, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	m.Env = []string{strings.Repeat("x", MaxMessage-len(empty)-4)}
	_, w := pipe(t)
	if err := daemon.Send(m, w, w); err != nil {
		t.Fatal(err)
	}
	got, files, err := handler.Recv()
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Fatalf("%v", err)
	}
	closeAll(files)
	m.Env[0] += "x"
	if err := daemon.Send(m, w, w); err == nil || !strings.Contains(err.Error(), "environment") {
		t.Errorf("a byte more: %v, want an error that says what to do", err)
	}
}

func TestFilesOfAMessage(t *testing.T) {
	daemon, handler := pair(t)
	_, w := pipe(t)
	many := make([]*os.File, MaxFiles+1)
	for i := range many {
		many[i] = w
	}
	closed, _ := pipe(t)
	closed.Close()
	for name, send := range map[string]func() error{
		"no files":        func() error { return daemon.Send(exec()) },
		"one file":        func() error { return daemon.Send(exec(), w) },
		"too many":        func() error { return daemon.Send(exec(), many...) },
		"closed file":     func() error { return daemon.Send(exec(), w, closed) },
		"file and signal": func() error { return daemon.Send(Signal{ID: 1, Signal: 9}, w) },
	} {
		if err := send(); err == nil {
			t.Errorf("%s: sent", name)
		}
	}
	if err := daemon.Send(exec(), many[1:]...); err != nil {
		t.Fatal(err)
	}
	m, files, err := handler.Recv() // nothing of the above comes before
	if err != nil || len(files) != MaxFiles {
		t.Fatalf("%#v, %d files, %v", m, len(files), err)
	}
	closeAll(files)
}

// Whatever a peer sends is refused with an error, and its files are closed.
func TestHostilePeer(t *testing.T) {
	valid, err := encode(exec())
	if err != nil {
		t.Fatal(err)
	}
	handshake, err := encode(Handshake{Version: Version})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		daemon bool // the end that receives
		data   []byte
		files  int
	}{
		{"garbage to the handler", false, []byte{200, 1, 2}, 0},
		{"garbage with files", false, []byte{200, 1, 2}, 3},
		{"no data but files", false, nil, 2},
		{"exec without files", false, valid, 0},
		{"exec with one file", false, valid, 1},
		{"exec with too many files", false, valid, MaxFiles + 1},
		{"more than a message", false, make([]byte, MaxMessage+1), 0},
		{"more than a message with files", false, append(valid, make([]byte, MaxMessage)...), 2},
		{"garbage to the daemon", true, []byte{200, 1, 2}, 0},
		{"files to the daemon", true, handshake, 2},
		{"files without data to the daemon", true, nil, 2},
		{"a large message to the daemon", true, make([]byte, eventSize+1), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, peer := rawPair(t, test.daemon)
			_, w := pipe(t)
			before := openFiles(t)
			var oob []byte
			if test.files > 0 {
				fds := make([]int, test.files)
				for i := range fds {
					fds[i] = int(w.Fd())
				}
				oob = unix.UnixRights(fds...)
			}
			if err := unix.Sendmsg(peer, test.data, oob, nil, 0); err != nil {
				t.Fatal(err)
			}
			m, files, err := c.Recv()
			if err == nil || m != nil || files != nil {
				t.Errorf("%#v, %v, %v", m, files, err)
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d descriptors, %d before", after, before)
			}
		})
	}
}

func TestPeerGone(t *testing.T) {
	daemon, handler := pair(t)
	if err := handler.Send(Killed{Seq: 1}); err != nil {
		t.Fatal(err)
	}
	handler.Close()
	if m, _, err := daemon.Recv(); err != nil || m != (Killed{Seq: 1}) {
		t.Errorf("%#v, %v, want what was sent before the end", m, err)
	}
	if _, _, err := daemon.Recv(); err != io.EOF {
		t.Errorf("%v, want EOF", err)
	}
	if err := daemon.Send(KillAll{Seq: 1}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("%v, want EPIPE", err)
	}
}

// A peer that goes without reading everything is gone all the same.
func TestPeerGoneWithUnread(t *testing.T) {
	daemon, handler := pair(t)
	if err := daemon.Send(KillAll{Seq: 1}); err != nil {
		t.Fatal(err)
	}
	handler.Close()
	if _, _, err := daemon.Recv(); err != io.EOF {
		t.Errorf("%v, want EOF", err)
	}
}

func TestClose(t *testing.T) {
	daemon, _ := pair(t)
	result := make(chan error)
	go func() {
		_, _, err := daemon.Recv()
		result <- err
	}()
	if err := daemon.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, os.ErrClosed) {
		t.Errorf("receive: %v, want ErrClosed", err)
	}
	if err := daemon.Send(KillAll{Seq: 1}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("send: %v, want ErrClosed", err)
	}
	if err := daemon.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// The daemon never waits for a handler that does not read; the handler does wait for
// the daemon, and loses nothing.
func TestFull(t *testing.T) {
	daemon, handler := pair(t)
	var err error
	sent := 0
	for ; err == nil; sent++ {
		err = daemon.Send(KillAll{Seq: uint32(sent)})
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("%v, want ErrFull", err)
	}
	for i := range sent - 1 {
		if m, _, err := handler.Recv(); err != nil || m != (KillAll{Seq: uint32(i)}) {
			t.Fatalf("%#v, %v, want number %d", m, err, i)
		}
	}
	const many = 5000 // more than fits
	go func() {
		for i := range many {
			if err := handler.Send(Killed{Seq: uint32(i)}); err != nil {
				t.Error(err)
			}
		}
	}()
	for i := range many {
		if m, _, err := daemon.Recv(); err != nil || m != (Killed{Seq: uint32(i)}) {
			t.Fatalf("%#v, %v, want number %d", m, err, i)
		}
	}
}

func TestConcurrentSend(t *testing.T) {
	daemon, handler := pair(t)
	const senders, each = 4, 50
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				if err := handler.Send(Exited{ID: uint32(s*each + i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen := make(map[uint32]bool)
	for range senders * each {
		m, _, err := daemon.Recv()
		if err != nil {
			t.Fatal(err)
		}
		seen[m.(Exited).ID] = true
	}
	wg.Wait()
	if len(seen) != senders*each {
		t.Errorf("%d messages, want %d", len(seen), senders*each)
	}
}

func TestNewConnRefuses(t *testing.T) {
	r, _ := pipe(t)
	if _, err := NewConn(r); err == nil {
		t.Error("a pipe was taken")
	}
	if _, err := r.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file is open: %v", err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	if _, err := NewConn(os.NewFile(uintptr(fds[1]), "stream")); err == nil {
		t.Error("a stream socket was taken")
	}
}
