// Package accept keeps servers serving while the kernel lacks something. A call that
// takes a connection or a packet fails when too many files are open or memory is short,
// and for what happens to one connection. Both pass; a loop that ends with the first
// error does not come back.
package accept

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// The pauses before a call that failed is made again, which double. They are those of
// net/http: short enough for clients that wait, and long enough for a loop that fails at
// every attempt.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

// noteEvery bounds how often a Listener reports: an attacker may cause every error.
const noteEvery = 10 * time.Second

// passing are the errors that say nothing about the socket itself (accept(2), udp(7)).
var passing = []syscall.Errno{
	// What the host, the process or the netpoller lacks at the moment.
	syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ENOSPC,
	// What has happened to one connection, or to a packet that was sent earlier.
	syscall.ECONNABORTED, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPROTO, syscall.ENOPROTOOPT,
	syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.ENETUNREACH, syscall.ENONET, syscall.ETIMEDOUT,
	syscall.EPERM, // the packet filter, or a security module, refuses it
	// Nothing has happened.
	syscall.EINTR, syscall.EAGAIN,
}

// Temporary reports whether the call that returned err, an accept or the read of a packet,
// may succeed if it is made again. The end of a deadline is not temporary.
func Temporary(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains(passing, errno)
}

// Retry calls f until it succeeds, fails with an error that is not temporary, or ctx has
// ended, and returns what f returned last. Between the calls are pauses, which grow from 5
// ms to 1 s and end with ctx. note, which may be nil, gets the first error if there is a
// second call.
func Retry(ctx context.Context, f func() error, note func(error)) error {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := f()
		if err == nil || !Temporary(err) || ctx.Err() != nil {
			return err
		}
		if pause == firstPause && note != nil {
			note(err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// Listener returns l with an Accept that is called again, as by [Retry], after temporary
// errors, until the listener is closed. note, which may be nil, gets such an error, once
// in ten seconds at most. The listener takes l over, and may be used by several
// goroutines.
func Listener(l net.Listener, note func(error)) net.Listener {
	p := &listener{Listener: l, note: note}
	p.open, p.end = context.WithCancel(context.Background())
	return p
}

type listener struct {
	net.Listener
	open  context.Context // ends with Close
	end   context.CancelFunc
	note  func(error)
	noted atomic.Int64 // when note was called last, in nanoseconds since 1970
}

// Accept waits for the next connection.
func (l *listener) Accept() (conn net.Conn, err error) {
	err = Retry(l.open, func() (err error) {
		conn, err = l.Listener.Accept()
		return err
	}, l.report)
	if err != nil && l.open.Err() != nil { // it was closed in a pause
		return nil, net.ErrClosed
	}
	return conn, err
}

func (l *listener) report(err error) {
	last, now := l.noted.Load(), time.Now().UnixNano()
	if l.note != nil && now-last >= int64(noteEvery) && l.noted.CompareAndSwap(last, now) {
		l.note(err)
	}
}

// Close closes the listener, and ends a pause of Accept.
func (l *listener) Close() error {
	l.end()
	return l.Listener.Close()
}
