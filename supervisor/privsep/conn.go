package privsep

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

// Pair returns the two ends of a new connection, both close-on-exec.
func Pair() (supervisor, worker *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "supervisor"), nil
}

// conn is one end of the connection. send is safe for concurrent use, receive is not.
type conn struct {
	*net.UnixConn
	data, oob []byte
}

// newConn returns a conn on f that receives messages of up to size bytes. It closes f, also
// on an error.
func newConn(f *os.File, size int) (*conn, error) {
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
	return &conn{u, make([]byte, size+1), make([]byte, unix.CmsgSpace(4*(maxFiles+1)))}, nil
}

// send sends a message with files, which the caller still owns.
func (c *conn) send(b []byte, files []*os.File) error {
	return descriptor.UseAll(files, func(fds []int) error {
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		return retry(func() error {
			_, _, err := c.WriteMsgUnix(b, oob, nil)
			return err
		})
	})
}

// receive waits for a message. The bytes are valid until the next call; the caller owns the
// files. io.EOF means that the other end is closed. With errFilesLost the bytes are valid.
func (c *conn) receive() ([]byte, []*os.File, error) {
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
	case flags&unix.MSG_TRUNC != 0 || n == len(c.data) || len(files) > maxFiles:
		err = errors.New("the message is too large")
	case flags&unix.MSG_CTRUNC != 0:
		closeAll(files)
		return c.data[:n], nil, errFilesLost
	}
	if err != nil {
		closeAll(files)
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

// errFilesLost reports that a message arrived without all of its files.
var errFilesLost = errors.New("files of a message were lost, because this process has too many open files or the message had too many; raise the limit of open files (LimitNOFILE= of the service, ulimit -n)")

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

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
