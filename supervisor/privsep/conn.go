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

// Pair makes the two ends of the line, both close-on-exec.
func Pair() (supervisor, worker *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "supervisor"), nil
}

// conn is one end of the line. Sending is safe for concurrent use, receiving not.
type conn struct {
	*net.UnixConn
	data, oob []byte
}

// newConn makes a conn of f, which it closes in any case, that takes messages of up to
// size bytes.
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
	// One byte and one file more than allowed, to see what exceeds it.
	return &conn{u, make([]byte, size+1), make([]byte, unix.CmsgSpace(4*(maxFiles+1)))}, nil
}

// send sends a message with files, which stay the caller's.
func (c *conn) send(b []byte, files []*os.File) error {
	return descriptor.UseAll(files, func(fds []int) error {
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		return again(func() error {
			_, _, err := c.WriteMsgUnix(b, oob, nil)
			return err
		})
	})
}

// receive waits for a message. The bytes are valid until the next call, the files are
// the caller's. io.EOF means that the other end is gone. With errFilesLost the bytes are
// there.
func (c *conn) receive() ([]byte, []*os.File, error) {
	var n, oobn, flags int
	err := again(func() (err error) {
		n, oobn, flags, _, err = c.ReadMsgUnix(c.data, c.oob)
		return err
	})
	if errors.Is(err, unix.ECONNRESET) { // gone, and did not read everything before
		err = io.EOF
	}
	if err != nil {
		return nil, nil, err
	}
	files, err := takeFiles(c.oob[:oobn])
	switch {
	case err != nil:
	case flags&unix.MSG_TRUNC != 0 || n == len(c.data) || len(files) > maxFiles:
		err = errors.New("a message that is too large")
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

// scarce are the errors of a kernel that lacks something at the moment: memory, or files
// that may be open or on their way.
var scarce = []unix.Errno{unix.ENOMEM, unix.ENOBUFS, unix.EMFILE, unix.ENFILE, unix.ETOOMANYREFS}

// again calls f until the kernel has what it needs for it, for some seconds: there is no
// event that tells of memory. A message that was not taken is still there.
func again(f func() error) error {
	for pause := time.Millisecond; ; pause *= 2 {
		err := f()
		var errno unix.Errno
		if !errors.As(err, &errno) || !slices.Contains(scarce, errno) || pause > 2*time.Second {
			return err
		}
		time.Sleep(pause)
	}
}

// errFilesLost says that a message came without all of its files.
var errFilesLost = errors.New("files that came with a message were lost: too many are open in this process, or too many came; raise the limit of open files (LimitNOFILE= of the service, ulimit -n)")

// takeFiles makes files of the descriptors in a control buffer. With an error it
// returns those that it has found.
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
