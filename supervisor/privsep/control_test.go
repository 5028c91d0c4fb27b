package privsep

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
)

// serveControl starts a server with that configuration, and returns it with its client. Both end
// with the test.
func serveControl(t *testing.T, cfg Config) (*Server, *Client) {
	t.Helper()
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Sandboxes = 1
	s, err := NewServer(ours, cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(func() {}) }()
	c, err := NewClient(line, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, c
}

// says writes to one end of a connection and reads it from the other.
func says(t *testing.T, from, to net.Conn) {
	t.Helper()
	_ = to.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := from.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(to, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

// The worker gets connections to the control process, and those that it opens to the worker.
func TestConnections(t *testing.T) {
	control := seqpacket.NewStreams()
	defer control.Close()
	var dead atomic.Bool
	s, c := serveControl(t, Config{Connect: func(context.Context) (*os.File, error) {
		if dead.Load() {
			return nil, message.ErrNoControl
		}
		ours, theirs, err := seqpacket.StreamPair()
		if err == nil {
			control.Add(theirs)
		}
		return ours, err
	}})
	out, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := control.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	says(t, out, in)
	says(t, in, out)

	mine, theirs, err := seqpacket.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	err = s.Push(theirs)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := c.Streams().Accept()
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
	says(t, conn, accepted)
	if err := s.Stop(); err != nil { // is no connection
		t.Fatal(err)
	}
	<-c.Stops()

	dead.Store(true)
	if _, err := c.Connect(t.Context()); !errors.Is(err, message.ErrNoControl) {
		t.Errorf("without a control process: %v", err)
	}
	c.Close()
	if _, err := c.Streams().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the supervisor has gone: %v", err)
	}
}

// The worker ends revisions only where the supervisor lets it.
func TestRetire(t *testing.T) {
	asked := make(chan uint64, 3)
	_, c := serveControl(t, Config{Retire: func(n uint64) error {
		asked <- n
		if n != 7 {
			return message.ErrUnknownRevision
		}
		return nil
	}})
	if err := c.Retire(t.Context(), 7); err != nil {
		t.Error(err)
	}
	if err := c.Retire(t.Context(), 1<<63); !errors.Is(err, message.ErrUnknownRevision) {
		t.Error(err)
	}
	if a, b := <-asked, <-asked; a != 7 || b != 1<<63 || len(asked) != 0 {
		t.Errorf("%d and %d were ended, and %d others", a, b, len(asked))
	}
	_, alone := serveControl(t, Config{})
	if err := alone.Retire(t.Context(), 7); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("where the worker may not: %v", err)
	}
	if _, err := alone.Connect(t.Context()); !errors.Is(err, message.ErrNoControl) {
		t.Errorf("where there is no control process: %v", err)
	}
}

// The worker gets segments of the logs by their numbers, where there are logs.
func TestSegment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "segment")
	_, c := serveControl(t, Config{Segment: func(n uint64, fresh bool) (*os.File, error) {
		if n != 7 || !fresh {
			return nil, os.ErrNotExist
		}
		return os.Create(path)
	}})
	f, err := c.Segment(t.Context(), 7, true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("a line\n"); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "a line\n" {
		t.Errorf("%q, %v", text, err)
	}
	if f, err := c.Segment(t.Context(), 7, false); err == nil {
		t.Errorf("one that does not exist is %s", f.Name())
	}
	_, alone := serveControl(t, Config{})
	if _, err := alone.Segment(t.Context(), 7, true); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("where there are none: %v", err)
	}
}
