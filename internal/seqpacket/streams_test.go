package seqpacket

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const messageSize = 40 // of these tests

// line returns both ends of a connection.
func line(t *testing.T) (a, b *Conn) {
	t.Helper()
	first, second, err := Pair("second", "first")
	if err != nil {
		t.Fatal(err)
	}
	for f, c := range map[*os.File]**Conn{first: &a, second: &b} {
		if *c, err = NewConn(f, messageSize, 1); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*c).Close() })
		_ = (*c).SetDeadline(time.Now().Add(30 * time.Second)) // a hang is a failure, not a hung test
	}
	return a, b
}

// A connection that is sent as a file is accepted at the other side, and carries bytes both
// ways.
func TestStreamTravels(t *testing.T) {
	a, b := line(t)
	mine, theirs, err := StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Push([]byte("stream"), []*os.File{theirs}); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	_, files, err := b.Receive()
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	s := NewStreams()
	defer s.Close()
	s.Add(files[0])
	accepted, err := s.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	conn, err := net.FileConn(mine)
	mine.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, way := range [][2]net.Conn{{conn, accepted}, {accepted, conn}} {
		if _, err := way[0].Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(way[1], got); err != nil || string(got) != "hello" {
			t.Errorf("%q, %v", got, err)
		}
	}
	conn.Close()
	if n, err := accepted.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v after the other end was closed", n, err)
	}
}

// Push does not wait for a side that does not read, also while a Send waits for it.
func TestPushDoesNotWait(t *testing.T) {
	a, b := line(t)
	pushed := 0
	for err := error(nil); ; pushed++ {
		if err = a.Push(make([]byte, messageSize), nil); errors.Is(err, ErrFull) {
			break
		}
		if err != nil || pushed > 1<<20 {
			t.Fatalf("after %d messages: %v", pushed, err)
		}
	}
	sent := make(chan error, 1)
	go func() { sent <- a.Send(make([]byte, messageSize), nil) }()
	for deadline := time.Now().Add(20 * time.Second); !waitsToSend(); {
		if time.Now().After(deadline) {
			t.Fatal("the message does not wait: the test shows nothing")
		}
	}
	if err := a.Push([]byte("one more"), nil); !errors.Is(err, ErrFull) {
		t.Errorf("a push into a full connection: %v", err)
	}
	for range pushed + 1 {
		if _, _, err := b.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if err := a.Push([]byte("room again"), nil); err != nil {
		t.Error(err)
	}
	b.Close()
	if err := a.Push([]byte("nobody"), nil); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("a push to an end that is closed: %v", err)
	}
}

// Connections that nobody accepts are bounded, and none stays open after Close, whatever
// happens at the same time.
func TestStreamsAreDropped(t *testing.T) {
	s := NewStreams()
	var ends []*os.File
	add := func() {
		mine, theirs, err := StreamPair()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, mine)
		s.Add(theirs)
	}
	for range backlog + 1 {
		add()
	}
	if n := len(s.conns); n != backlog {
		t.Errorf("%d connections wait, want %d", n, backlog)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	s.Add(null)
	var accepting sync.WaitGroup
	for range 4 {
		accepting.Go(func() {
			for {
				c, err := s.Accept()
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
				c.Close()
			}
		})
	}
	s.Close()
	s.Close()
	add()
	accepting.Wait()
	for i, f := range ends {
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("connection %d is open: %v", i, err)
		}
		c.Close()
	}
}
