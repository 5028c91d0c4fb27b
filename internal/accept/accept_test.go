package accept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// failing is a listener whose Accept fails with the errors in turn. Then it gives
// connections.
type failing struct {
	net.Listener
	errs   []error
	closed bool
}

func (l *failing) Accept() (net.Conn, error) {
	if l.closed {
		return nil, net.ErrClosed
	}
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
	}
	conn, other := net.Pipe()
	other.Close()
	return conn, nil
}

func (l *failing) Close() error { l.closed = true; return nil }

// What is temporary passes, however often it comes; the loop gets the connection.
func TestTemporaryErrorsPass(t *testing.T) {
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ENOSPC, syscall.ECONNABORTED, syscall.EPROTO,
		syscall.ENETDOWN, syscall.EHOSTUNREACH, syscall.ECONNREFUSED, syscall.EPERM, syscall.EINTR,
	} {
		synctest.Test(t, func(t *testing.T) {
			var notes []error
			l := Listener(&failing{errs: slices.Repeat([]error{errno}, 12)}, func(err error) { notes = append(notes, err) })
			defer l.Close()
			began := time.Now()
			conn, err := l.Accept()
			if err != nil {
				t.Fatalf("%v: %v", errno, err)
			}
			conn.Close()
			// 5 ms and its doubles up to 640 ms, then four seconds.
			if took := time.Since(began); took != 1275*time.Millisecond+4*time.Second {
				t.Errorf("%v: 12 errors took %v", errno, took)
			}
			if len(notes) != 1 || !errors.Is(notes[0], errno) {
				t.Errorf("%v: noted %v", errno, notes)
			}
		})
	}
}

// What is wrong with the socket itself, or is meant for the caller, is the caller's.
func TestOtherErrorsReturn(t *testing.T) {
	for _, err := range []error{syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK, syscall.EOPNOTSUPP, net.ErrClosed, io.EOF, os.ErrDeadlineExceeded} {
		synctest.Test(t, func(t *testing.T) {
			l := Listener(&failing{errs: []error{err}}, func(err error) { t.Errorf("noted %v", err) })
			defer l.Close()
			began := time.Now()
			if _, got := l.Accept(); !errors.Is(got, err) || time.Since(began) != 0 {
				t.Errorf("%v: %v after %v", err, got, time.Since(began))
			}
		})
	}
}

// Close ends a pause, and the end of a context one of Retry.
func TestPauseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listener(&failing{errs: slices.Repeat([]error{syscall.EMFILE}, 1000)}, nil)
		accepted := make(chan error)
		go func() {
			_, err := l.Accept()
			accepted <- err
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		began := time.Now()
		l.Close()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) || time.Since(began) != 0 {
			t.Errorf("%v, %v after Close", err, time.Since(began))
		}

		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began = time.Now()
		if err := Retry(ctx, func() error { return syscall.ENOMEM }, nil); err != syscall.ENOMEM || time.Since(began) != 100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// An error at every second attempt does not fill the log.
func TestNotesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		notes := 0
		f := &failing{}
		l := Listener(f, func(error) { notes++ })
		defer l.Close()
		for i := range 10 * 200 { // ten seconds and the pauses of 5 ms
			f.errs = []error{syscall.EMFILE}
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(fmt.Errorf("%d: %w", i, err))
			}
			conn.Close()
		}
		if notes != 1 {
			t.Errorf("%d notes in 10 s, want 1", notes)
		}
		time.Sleep(noteEvery)
		f.errs = []error{syscall.EMFILE}
		if _, err := l.Accept(); err != nil || notes != 2 {
			t.Errorf("%v, %d notes, want another", err, notes)
		}
	})
}
