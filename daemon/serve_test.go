package daemon

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// Only deaths within a minute count.
func TestDeaths(t *testing.T) {
	var d deaths
	now := time.Now()
	for _, c := range []struct {
		after time.Duration
		want  int
	}{
		{0, 1}, {time.Second, 2}, {time.Minute, 3}, {time.Minute + 1, 3}, {61*time.Second + 1, 3}, {3 * time.Minute, 1},
	} {
		if n := d.add(now.Add(c.after)); n != c.want {
			t.Errorf("%v: %d deaths, want %d", c.after, n, c.want)
		}
	}
}

// The socket of the endpoint outlives those who accept from it, and ends when it is closed.
func TestHeldSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	s, err := holdSocket(l)
	if err != nil {
		t.Fatal(err)
	}
	var waiting net.Conn
	for n := range 2 {
		if waiting, err = net.Dial("tcp", addr); err != nil { // while nobody accepts
			t.Fatal(err)
		}
		defer waiting.Close()
		f, err := s.file()
		if err != nil {
			t.Fatal(err)
		}
		worker, err := net.FileListener(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		c, err := worker.Accept()
		if err != nil || c.RemoteAddr().String() != waiting.LocalAddr().String() {
			t.Fatalf("worker %d: %v", n, err)
		}
		c.Close()
		worker.Close()
	}
	s.close()
	s.close()
	if f, err := s.file(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, %v after close", f, err)
	}
	if conn, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
		conn.Close()
		t.Error("it takes connections after close")
	}
	if _, err := holdSocket(noSocket{l}); err == nil {
		t.Error("what is no socket is held")
	}
}

type noSocket struct{ net.Listener }

func (noSocket) File() (*os.File, error) { return nil, errors.New("no socket") }
