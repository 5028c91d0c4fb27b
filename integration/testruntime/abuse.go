package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"

	"golang.org/x/sys/unix"
)

// patience of a client that waits for an answer to garbage.
const patience = 30 * time.Second

func (t *testRuntime) dial() (net.Conn, error) {
	return net.Dial("tcp", strings.TrimPrefix(t.base, "http://"))
}

// rawBytes sends Data, then N letters, over a connection of its own, and notes the status
// of the answer, or 0 if the connection was closed without one.
func rawBytes(t *testRuntime, s script.Step, r *script.Result) {
	c, err := t.dial()
	if err != nil {
		fail(r, err)
		return
	}
	defer c.Close()
	fail(r, c.SetDeadline(time.Now().Add(patience)))
	go func() { // an answer may come, and the connection be closed, before all is sent
		_, _ = io.WriteString(c, t.expand(s.Data))
		_, _ = io.Copy(c, io.LimitReader(zeros{}, s.N))
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		fail(r, err)
		return
	}
	if err == nil {
		r.Status = resp.StatusCode
		_ = resp.Body.Close()
	}
}

// hold opens N connections, sends Data on each, and keeps them until the process ends.
// Those that could be opened are counted.
func hold(t *testRuntime, s script.Step, r *script.Result) {
	for range s.N {
		c, err := t.dial()
		if err != nil {
			fail(r, err)
			return
		}
		if _, err := io.WriteString(c, t.expand(s.Data)); err != nil && !closed(err) {
			fail(r, err)
			return
		}
		t.connections = append(t.connections, c)
		r.N++
	}
}

// closed tells whether the other side has ended a connection.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// held counts, after MS, how many of the connections of hold the other side has not
// closed (N), and then closes all.
func held(t *testRuntime, s script.Step, r *script.Result) {
	deadline := time.Now().Add(millis(s))
	for _, c := range t.connections {
		_ = c.SetReadDeadline(deadline)
		_, err := io.Copy(io.Discard, c)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.N++
		}
		_ = c.Close()
	}
	t.connections = nil
}

// threads starts up to N threads and notes how many there were. The Go runtime ends
// the process when it cannot have one more, so a program of its own does it.
func threads(_ *testRuntime, s script.Step, r *script.Result) {
	var up, down sync.WaitGroup
	down.Add(1)
	for range s.N {
		up.Add(1)
		go func() {
			runtime.LockOSThread()
			up.Done()
			down.Wait()
		}()
	}
	up.Wait()
	down.Done()
	r.N = s.N
}

// watch makes inotify instances, at most N, until one cannot be had.
func watch(_ *testRuntime, s script.Step, r *script.Result) {
	var fds []int
	for r.N < s.N {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			fail(r, err)
			break
		}
		fds = append(fds, fd)
		r.N++
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// pipes makes up to N pipes as large as they can be, fills them, and notes the bytes
// that they held together.
func pipes(_ *testRuntime, s script.Step, r *script.Result) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	full := bytes.Repeat([]byte("x"), mib)
	for range s.N {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			fail(r, err)
			return
		}
		files = append(files, os.NewFile(uintptr(p[0]), "read"), os.NewFile(uintptr(p[1]), "write"))
		for size := mib; size >= os.Getpagesize(); size /= 2 { // the user's quota of pipe pages goes down
			if _, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, size); err == nil {
				break
			}
		}
		n, err := unix.Write(p[1], full)
		if err != nil {
			fail(r, err)
			return
		}
		r.N += int64(n)
	}
}

// flood writes N letters to standard error, with a line's end after every MS of them;
// with 0 there is none.
func flood(_ *testRuntime, s script.Step, r *script.Result) {
	block := bytes.Repeat([]byte("x"), mib)
	if s.MS > 0 {
		for i := int(s.MS) - 1; i < len(block); i += int(s.MS) {
			block[i] = '\n'
		}
	}
	for r.N < s.N {
		n, err := os.Stderr.Write(block)
		r.N += int64(n)
		if err != nil {
			fail(r, err)
			return
		}
	}
}

// orphans starts N processes whose parents end at once, and which end when they have
// become PID 1's.
func orphans(_ *testRuntime, s script.Step, r *script.Result) {
	for range s.N {
		if err := self("orphan").Run(); err != nil {
			fail(r, err)
			return
		}
		r.N++
	}
}
