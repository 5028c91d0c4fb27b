package privsep

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// A worker that is not confined gets nothing: the line ends at its first request.
func TestWorkerNotConfined(t *testing.T) {
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHost{t: t}
	naked := errors.New("it has no filter")
	checks := 0
	s, err := NewServer(ours, Config{Create: h.create, Sandboxes: 1, UID: uint32(os.Getuid())})
	if err != nil {
		t.Fatal(err)
	}
	s.Require(func() error { checks++; return naked })
	served := make(chan error, 1)
	gone := false
	go func() { served <- s.Serve(func() { gone = true }) }()
	c := client(t, line, 1)
	if _, err := c.Create(t.Context(), 1); err == nil {
		t.Error("it was given a sandbox")
	}
	if err := <-served; !errors.Is(err, naked) || !gone || checks != 1 || h.live != 0 {
		t.Errorf("%v, gone %v, %d checks, %d sandboxes; want the check's error", err, gone, checks, h.live)
	}
}

// A confined worker is checked once.
func TestWorkerConfined(t *testing.T) {
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	checks := 0
	s, err := NewServer(ours, Config{Renew: func(context.Context) ([]string, error) { return []string{"a", "b", "c"}, nil }, Sandboxes: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.Require(func() error { checks++; return nil })
	served := make(chan error, 1)
	go func() { served <- s.Serve(func() {}) }()
	c, err := NewClient(line, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := c.Renew(t.Context()); err != nil || strings.Join(got, "") != "abc" {
			t.Errorf("%q, %v", got, err)
		}
	}
	c.Close()
	if err := <-served; err != nil || checks != 1 {
		t.Errorf("%v after %d checks, want one", err, checks)
	}
}
