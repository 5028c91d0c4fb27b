package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a server and returns the other end of its line. want is in the error that the
// server ends with, "" if that is nil.
func serve(t *testing.T, cfg Config, want string) (*Server, *os.File) {
	t.Helper()
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ours, cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(func() {}) }()
	t.Cleanup(func() {
		line.Close()
		select {
		case err := <-served:
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("Serve: %v, want %q", err, want)
			}
		case <-time.After(20 * time.Second):
			t.Error("the server does not end")
		}
	})
	return s, line
}

func client(t *testing.T, line *os.File) *Client {
	t.Helper()
	c, err := NewClient(line)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close) // before that of serve
	return c
}

// The supervisor gets the revision as it is and each file at its tree's place.
func TestRegister(t *testing.T) {
	want := revision.Encode()
	_, line := serve(t, Config{Register: func(_ context.Context, form []byte, files []*os.File) (function.Program, uint32, error) {
		if !bytes.Equal(form, want) || len(files) != message.MaxTrees {
			t.Errorf("%x with %d files", form, len(files))
		}
		if files[1] == nil {
			return function.Program{}, 0b10, nil
		}
		for i, f := range files {
			text := ""
			if f != nil {
				b, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
				if err != nil {
					t.Error(err)
				}
				text = string(b)
			}
			if want := map[int]string{1: "first layer", 2: "second layer"}[i]; text != want {
				t.Errorf("tree %d is %q, want %q", i, text, want)
			}
		}
		return program, 0, nil
	}}, "")
	c := client(t, line)
	var missing *Missing
	if _, err := c.Register(t.Context(), revision, nil); !errors.As(err, &missing) || !reflect.DeepEqual(missing.Trees, []int{1}) {
		t.Fatalf("%v, want tree 1 to be missing", err)
	}
	files := map[int]*os.File{}
	for i, text := range map[int]string{2: "second layer", 1: "first layer"} {
		path := filepath.Join(t.TempDir(), "blob")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	got, err := c.Register(t.Context(), revision, files)
	if err != nil || !reflect.DeepEqual(got, program) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Errors keep their kinds, and a request that nobody waits for any more does no harm.
func TestErrorsAndEnd(t *testing.T) {
	begun := make(chan struct{})
	gate := make(chan struct{})
	_, line := serve(t, Config{
		Register: func(ctx context.Context, _ []byte, _ []*os.File) (function.Program, uint32, error) {
			close(begun)
			<-gate
			return program, 0, ctx.Err()
		},
		Forget:  func(n uint64) error { return fmt.Errorf("revision %d: %w", n, message.ErrTooLarge) },
		Connect: func(context.Context) (*os.File, error) { return nil, message.ErrNoWorker },
	}, "")
	c := client(t, line)
	if err := c.Forget(t.Context(), 9); !errors.Is(err, message.ErrTooLarge) || !strings.Contains(err.Error(), "revision 9") {
		t.Error(err)
	}
	if _, err := c.Connect(t.Context()); !errors.Is(err, message.ErrNoWorker) {
		t.Error(err)
	}
	if _, err := c.DialStore(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	if _, err := c.Register(ctx, revision, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(gate)
	c.Close()
	if err := c.Forget(t.Context(), 9); err == nil {
		t.Error("a request after Close succeeds")
	}
	if _, err := c.Streams().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Both sides get connections to each other; requests to stop are told from them.
func TestStreams(t *testing.T) {
	made := make(chan *os.File, 1)
	s, line := serve(t, Config{Connect: func(context.Context) (*os.File, error) {
		f, mine, err := seqpacket.StreamPair()
		if err == nil {
			made <- mine
		}
		return f, err
	}}, "")
	c := client(t, line)
	says := func(a, b net.Conn) {
		t.Helper()
		_ = b.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := a.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(b, got); err != nil || string(got) != "hello" {
			t.Errorf("%q, %v", got, err)
		}
	}
	file := func(f *os.File) net.Conn {
		t.Helper()
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	out, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	says(out, file(<-made))
	ours, theirs, err := seqpacket.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Push(theirs); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	in, err := c.Streams().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	says(file(ours), in)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	<-c.Stops()
}

// A control process that violates the protocol is cut off, whatever it has going on.
func TestViolations(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, c := range map[string]struct {
		do   func(send func([]byte, ...*os.File))
		want string
	}{
		"garbage":        {func(send func([]byte, ...*os.File)) { send([]byte("GET / HTTP/1.1\r\n\r\n")) }, "18 bytes"},
		"a long message": {func(send func([]byte, ...*os.File)) { send(make([]byte, 100_000)) }, "too large"},
		"unwanted files": {func(send func([]byte, ...*os.File)) { send(request{id: 1, op: opConnect}.encode(), null) }, "1 files"},
		"too many files": {func(send func([]byte, ...*os.File)) {
			send(request{id: 1, op: opConnect}.encode(), null, null, null, null, null, null, null)
		}, "too large"},
		"an operation less": {func(send func([]byte, ...*os.File)) { send(request{id: 1}.encode()) }, "unknown operation 0"},
		"an id twice": {func(send func([]byte, ...*os.File)) {
			send(request{id: 1, op: opRegister}.encode())
			send(request{id: 1, op: opRegister}.encode())
		}, "id 1 is in use"},
		"a flood": {func(send func([]byte, ...*os.File)) {
			for i := range uint32(2*maxRequests + 1) {
				send(request{id: i + 1, op: opRegister}.encode())
			}
		}, "requests at once"},
		"a flood without reading": {func(send func([]byte, ...*os.File)) {
			for i := range uint32(100_000) {
				send(request{id: i + 1, op: opForget, value: 1}.encode())
			}
		}, "requests at once"},
	} {
		t.Run(name, func(t *testing.T) {
			_, line := serve(t, Config{
				Register: func(ctx context.Context, _ []byte, _ []*os.File) (function.Program, uint32, error) {
					<-ctx.Done()
					return function.Program{}, 0, ctx.Err()
				},
				Forget: func(uint64) error { return nil },
			}, c.want)
			conn, err := seqpacket.NewConn(line, maxReply, maxFiles)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			failed := false
			c.do(func(b []byte, files ...*os.File) {
				if failed {
					return
				}
				if err := conn.Send(b, files); errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
					failed = true
				} else if err != nil {
					t.Fatal(err)
				}
			})
			for err = nil; err == nil; {
				_, _, err = conn.Receive()
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("the server does not hang up: %v", err)
			}
		})
	}
}

// A control process that is not confined gets nothing.
func TestNotConfined(t *testing.T) {
	naked := errors.New("it has no filter")
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ours, Config{Forget: func(uint64) error { t.Error("a request was served"); return nil }})
	if err != nil {
		t.Fatal(err)
	}
	s.Require(func() error { return naked })
	served := make(chan error, 1)
	gone := false
	go func() { served <- s.Serve(func() { gone = true }) }()
	if err := client(t, line).Forget(t.Context(), 1); err == nil {
		t.Error("its request succeeds")
	}
	if err := <-served; !errors.Is(err, naked) || !gone {
		t.Errorf("%v, gone %v", err, gone)
	}
}
