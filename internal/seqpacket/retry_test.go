package seqpacket

import (
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// S-10: retry waits for memory and for open files, for a limited time, and for nothing else.
func TestRetry(t *testing.T) {
	for _, c := range []struct {
		fails []error // in turn; the last one stays
		want  error
		tries int
	}{
		{[]error{unix.ENOMEM, unix.ENOBUFS, nil}, nil, 3},
		{[]error{unix.ENOMEM, io.EOF}, io.EOF, 2},
		{[]error{unix.EMFILE, os.NewSyscallError("sendmsg", unix.ETOOMANYREFS), nil}, nil, 3},
		{[]error{unix.EPIPE}, unix.EPIPE, 1},
		{[]error{unix.ENOMEM}, unix.ENOMEM, 12},
	} {
		synctest.Test(t, func(t *testing.T) {
			tries, began := 0, time.Now()
			err := retry(func() error {
				tries++
				return c.fails[min(tries, len(c.fails))-1]
			})
			if !errors.Is(err, c.want) || tries != c.tries || time.Since(began) > 5*time.Second {
				t.Errorf("%v: %v after %d tries, %v; want %v after %d", c.fails, err, tries, time.Since(began), c.want, c.tries)
			}
		})
	}
}
