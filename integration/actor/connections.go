package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/actor"
	"github.com/sandboxd/sandboxd/conformance/script"
)

// patience of a client that waits for an answer to garbage.
const patience = 30 * time.Second

// zeros is an endless source of the letter 0.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

// rawBytes uses a connection of its own.
func rawBytes(_ context.Context, a *actor.Actor, s script.Step, e *script.Entry) {
	c, err := net.Dial("tcp", a.API)
	if err != nil {
		e.Fail(err)
		return
	}
	defer c.Close()
	e.Fail(c.SetDeadline(time.Now().Add(patience)))
	go func() { // an answer may come, and the connection be closed, before all is sent
		_, _ = io.WriteString(c, a.Expand(s.Data))
		_, _ = io.Copy(c, io.LimitReader(zeros{}, s.N))
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		e.Fail(err)
		return
	}
	if err == nil {
		e.Status = resp.StatusCode
		_ = resp.Body.Close()
	}
}

// kept are the connections of hold, until heldOpen or the end of the process.
var kept struct {
	mu          sync.Mutex
	connections []net.Conn
}

func hold(_ context.Context, a *actor.Actor, s script.Step, e *script.Entry) {
	kept.mu.Lock()
	defer kept.mu.Unlock()
	for range s.N {
		c, err := net.Dial("tcp", a.API)
		if err != nil {
			e.Fail(err)
			return
		}
		if _, err := io.WriteString(c, a.Expand(s.Data)); err != nil && !closed(err) {
			e.Fail(err)
			return
		}
		kept.connections = append(kept.connections, c)
		e.N++
	}
}

// closed reports whether the other side has ended a connection.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

func heldOpen(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	kept.mu.Lock()
	defer kept.mu.Unlock()
	deadline := time.Now().Add(millis(s))
	for _, c := range kept.connections {
		_ = c.SetReadDeadline(deadline)
		_, err := io.Copy(io.Discard, c)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			e.N++
		}
		_ = c.Close()
	}
	kept.connections = nil
}
