package privsep

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/seqpacket"
)

// A sandbox whose files were lost on the way is closed again, also when who wanted it has
// given up meanwhile: the supervisor would keep it for as long as it runs.
func TestFilesLostAfterCancel(t *testing.T) {
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	supervisor, err := seqpacket.NewConn(ours, requestSize, maxFiles)
	if err != nil {
		t.Fatal(err)
	}
	defer supervisor.Close()
	_ = supervisor.SetDeadline(time.Now().Add(30 * time.Second)) // a hang is a failure, not a hung test
	c := client(t, theirs, 1)
	next := func(want op) request {
		t.Helper()
		b, files, err := supervisor.Receive()
		if err != nil {
			t.Fatal(err)
		}
		r, err := decodeRequest(b, len(files))
		if err != nil || r.op != want {
			t.Fatalf("request %+v, %v; want operation %d", r, err, want)
		}
		return r
	}
	answer := func(a reply, files ...*os.File) {
		t.Helper()
		b, err := a.encode()
		if err == nil {
			err = supervisor.Send(b, files)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	made := make(chan error, 1)
	go func() {
		_, err := c.Create(ctx, 1)
		made <- err
	}()
	create := next(opCreate)
	cancel()
	next(opCancel)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil { // what is open stays open
		t.Fatal(err)
	}
	answer(reply{id: create.id, n: 7, text: []string{"fn-1", "/x", "", "", "1"}}, os.Stdin)
	closing := next(opClose)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if closing.sandbox != 7 {
		t.Errorf("sandbox %d is closed, want 7", closing.sandbox)
	}
	answer(reply{id: closing.id})
	if err := <-made; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
