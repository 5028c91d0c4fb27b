package privsep

import (
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// S-10: the line waits for memory and room for files, but not for ever, and for nothing else.
func TestAgain(t *testing.T) {
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
			err := again(func() error {
				tries++
				return c.fails[min(tries, len(c.fails))-1]
			})
			if !errors.Is(err, c.want) || tries != c.tries || time.Since(began) > 5*time.Second {
				t.Errorf("%v: %v after %d tries, %v; want %v after %d", c.fails, err, tries, time.Since(began), c.want, c.tries)
			}
		})
	}
}
