// Package seqpacket sends messages with open files between two processes of the daemon, over
// a SOCK_SEQPACKET socket pair ([Pair], [Conn]), and makes a listener of the sockets that a
// process receives that way ([Streams]). It knows nothing of what the messages say.
package seqpacket

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
)

// Pair returns the two ends of a new connection, both close-on-exec. The names are those of
// the files, for messages: each is called after who is at its other end.
func Pair(first, second string) (*os.File, *os.File, error) {
	return pair(unix.SOCK_SEQPACKET, first, second)
}

// StreamPair returns the two ends of a new SOCK_STREAM connection, both close-on-exec. Ends
// of it can be sent as files, and received by [Streams].
func StreamPair() (*os.File, *os.File, error) { return pair(unix.SOCK_STREAM, "stream", "stream") }

func pair(kind int, first, second string) (*os.File, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), first), os.NewFile(uintptr(fds[1]), second), nil
}

// Conn is one end of a connection. Send and Push are safe for concurrent use, Receive is not.
type Conn struct {
	*net.UnixConn
	data, oob []byte
	most      int // files of a message
}

// NewConn returns a Conn on f that receives messages of up to size bytes with up to files
// files. It closes f, also on an error.
func NewConn(f *os.File, size, files int) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("not a unix socket")
	}
	// One byte and one file more than allowed, to detect messages that exceed the limits.
	return &Conn{UnixConn: u, data: make([]byte, size+1), oob: make([]byte, unix.CmsgSpace(4*(files+1))), most: files}, nil
}

// Send sends a message with files, which the caller still owns. It waits while the other
// side does not read.
func (c *Conn) Send(b []byte, files []*os.File) error {
	return descriptor.UseAll(files, func(fds []int) error {
		oob := rights(fds)
		return retry(func() error {
			_, _, err := c.WriteMsgUnix(b, oob, nil)
			return err
		})
	})
}

// ErrFull reports that the other side does not read what it is sent.
var ErrFull = errors.New("the process at the other end does not read its messages")

// Push is Send for messages that the other side has not asked for: instead of waiting for
// room it returns ErrFull.
func (c *Conn) Push(b []byte, files []*os.File) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return descriptor.UseAll(files, func(fds []int) error {
		oob := rights(fds)
		return retry(func() error {
			var sent error
			// Not raw.Write: it would wait for a Send that waits for room.
			err := raw.Control(func(fd uintptr) {
				_, sent = unix.SendmsgN(int(fd), b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			})
			switch {
			case err != nil:
				return err
			case errors.Is(sent, unix.EAGAIN):
				return ErrFull
			}
			return os.NewSyscallError("sendmsg", sent)
		})
	})
}

func rights(fds []int) []byte {
	if len(fds) == 0 {
		return nil
	}
	return unix.UnixRights(fds...)
}

// Receive waits for a message. The bytes are valid until the next call; the caller owns the
// files. io.EOF means that the other end is closed. With ErrFilesLost the bytes are valid.
func (c *Conn) Receive() ([]byte, []*os.File, error) {
	var n, oobn, flags int
	err := retry(func() (err error) {
		n, oobn, flags, _, err = c.ReadMsgUnix(c.data, c.oob)
		return err
	})
	if errors.Is(err, unix.ECONNRESET) { // the other end closed without reading everything
		err = io.EOF
	}
	if err != nil {
		return nil, nil, err
	}
	files, err := takeFiles(c.oob[:oobn])
	switch {
	case err != nil:
	case flags&unix.MSG_TRUNC != 0 || n == len(c.data) || len(files) > c.most:
		err = errors.New("the message is too large")
	case flags&unix.MSG_CTRUNC != 0:
		CloseAll(files)
		return c.data[:n], nil, ErrFilesLost
	}
	if err != nil {
		CloseAll(files)
		return nil, nil, err
	}
	return c.data[:n], files, nil
}

// scarce lists the errors for a temporary lack of memory, of open files, or of files in
// transit.
var scarce = []unix.Errno{unix.ENOMEM, unix.ENOBUFS, unix.EMFILE, unix.ENFILE, unix.ETOOMANYREFS}

// retry calls f again, for some seconds, while the kernel lacks a resource: no event reports
// that memory is available again. A message that was not received stays in the socket.
func retry(f func() error) error {
	for pause := time.Millisecond; ; pause *= 2 {
		err := f()
		var errno unix.Errno
		if !errors.As(err, &errno) || !slices.Contains(scarce, errno) || pause > 2*time.Second {
			return err
		}
		time.Sleep(pause)
	}
}

// ErrFilesLost reports that a message arrived without all of its files.
var ErrFilesLost = errors.New("files of a message were lost, because this process has too many open files or the message had too many; raise the limit of open files (LimitNOFILE= of the service, ulimit -n)")

// takeFiles returns the descriptors in a control buffer as files. On an error it returns
// those that it has found.
func takeFiles(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		fds, e := unix.ParseUnixRights(&messages[i])
		if e != nil {
			err = e
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, err
}

// CloseAll closes files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
