package wire

import (
	"errors"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
)

// eventSize bounds what the daemon's end receives: the messages of an init handler
// are small, and a buffer for larger ones would only serve an attacker.
const eventSize = 64

// ErrFull is returned by Send on the daemon's end when the init handler has left so
// many messages unread that no more fit.
var ErrFull = errors.New("peer does not read its messages")

// Conn is one end of a control socket. Send may be called by several goroutines at
// once; Recv by one at a time; Close at any time. A waiting Conn costs no thread.
type Conn struct {
	file   *os.File
	raw    syscall.RawConn
	closed atomic.Bool
	daemon bool   // the end made by Pair: takes events only, never waits in Send
	data   []byte // Recv's buffers
	oob    []byte
}

// Error says what failed on a control socket. Unwrap gives the cause.
type Error struct {
	Op  string // "pair", "open", "send" or "receive"
	Err error
}

func (e *Error) Error() string { return e.Op + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Pair makes a control socket. The daemon keeps local, whose Recv takes messages of
// an init handler only (up to 64 bytes, no files) and whose Send fails with [ErrFull]
// instead of waiting. remote goes to the init handler as an open file; the caller
// closes its copy once the handler runs, else the end of the handler goes unseen.
// Both are close-on-exec.
func Pair() (local *Conn, remote *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &Error{"pair", os.NewSyscallError("socketpair", err)}
	}
	remote = os.NewFile(uintptr(fds[1]), "init control socket")
	// A message must fit whatever the host's default buffer is. The kernel caps the
	// value at net.core.wmem_max and doubles it for its own needs.
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, MaxMessage); err != nil {
			_ = unix.Close(fds[0])
			_ = remote.Close()
			return nil, nil, &Error{"pair", os.NewSyscallError("setsockopt", err)}
		}
	}
	local, err = newDaemonConn(fds[0])
	if err != nil {
		_ = remote.Close()
		return nil, nil, &Error{"pair", err}
	}
	return local, remote, nil
}

// File returns a second descriptor of c's end, for another process to carry on with
// through [Take]. It belongs to the caller, who closes c without having used it.
func (c *Conn) File() (*os.File, error) {
	fd := -1
	var dupErr error
	err := c.raw.Control(func(own uintptr) { fd, dupErr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		return nil, &Error{"open", c.closedOr(err)}
	}
	if dupErr != nil {
		return nil, &Error{"open", os.NewSyscallError("fcntl", dupErr)}
	}
	return os.NewFile(uintptr(fd), "control socket"), nil
}

// Take makes the daemon's end of a control socket, as [Pair] does, of what File
// returned in another process. It closes f in any case.
func Take(f *os.File) (*Conn, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &Error{"open", os.NewSyscallError("fcntl", err)}
	}
	c, err := newDaemonConn(fd)
	if err != nil {
		return nil, &Error{"open", err}
	}
	return c, nil
}

// newDaemonConn wraps fd, which it owns also when it fails, as the daemon's end.
func newDaemonConn(fd int) (*Conn, error) {
	c, err := newConn(fd)
	if err == nil {
		c.daemon, c.data = true, make([]byte, eventSize)
	}
	return c, err
}

// NewConn makes the init handler's end of a control socket from f, which it closes
// in any case. It fails if f is not a SOCK_SEQPACKET socket.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()
	typ, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, &Error{"open", os.NewSyscallError("getsockopt", err)}
	}
	if typ != unix.SOCK_SEQPACKET {
		return nil, &Error{"open", errors.New("not a SOCK_SEQPACKET socket")}
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &Error{"open", os.NewSyscallError("fcntl", err)}
	}
	c, err := newConn(fd)
	if err != nil {
		return nil, &Error{"open", err}
	}
	c.data = make([]byte, MaxMessage)
	c.oob = make([]byte, unix.CmsgSpace(MaxFiles*4))
	return c, nil
}

// newConn wraps fd and owns it, also when it fails.
func newConn(fd int) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(fd), "control socket") // non-blocking: joins the netpoller
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &Conn{file: file, raw: raw}, nil
}

// Close ends the connection: a waiting Recv returns, the peer sees the end. It may
// be called more than once.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	return c.file.Close()
}

// Send sends m with files, which stay the caller's and are put in blocking mode, as
// os/exec does with the files of a child. Only an [Exec] has files. A message over a
// bound is refused and nothing is sent. When the peer is gone the error is EPIPE.
func (c *Conn) Send(m Message, files ...*os.File) error {
	b, err := encode(m)
	if err != nil {
		return &Error{"send", err}
	}
	if err := checkFiles(m, len(files)); err != nil {
		return &Error{"send", err}
	}
	err = descriptor.UseAll(files, func(fds []int) error {
		for _, fd := range fds {
			if err := unix.SetNonblock(fd, false); err != nil {
				return os.NewSyscallError("fcntl", err)
			}
		}
		return c.send(b, fds)
	})
	if err != nil {
		return &Error{"send", err}
	}
	return nil
}

// send sends a message with descriptors.
func (c *Conn) send(b []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	var sendErr error
	err := c.raw.Write(func(fd uintptr) bool {
		sendErr = ignoringEINTR(func() error {
			return unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL)
		})
		return sendErr != unix.EAGAIN || c.daemon
	})
	switch {
	case err != nil:
		return c.closedOr(err)
	case sendErr == unix.EAGAIN:
		return ErrFull
	}
	return os.NewSyscallError("sendmsg", sendErr)
}

// Recv waits for the next message. Its files belong to the caller and are
// close-on-exec. io.EOF means that the peer is gone and os.ErrClosed that c is
// closed; after any other error the stream cannot be trusted and c should be closed.
func (c *Conn) Recv() (Message, []*os.File, error) {
	var n, oobn, flags int
	var recvErr error
	err := c.raw.Read(func(fd uintptr) bool {
		recvErr = ignoringEINTR(func() (err error) {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), c.data, c.oob, unix.MSG_CMSG_CLOEXEC)
			return err
		})
		return recvErr != unix.EAGAIN
	})
	switch {
	case err != nil:
		return nil, nil, &Error{"receive", c.closedOr(err)}
	case recvErr == unix.ECONNRESET: // gone, and did not read everything before
		return nil, nil, io.EOF
	case recvErr != nil:
		return nil, nil, &Error{"receive", os.NewSyscallError("recvmsg", recvErr)}
	}
	files, err := takeFiles(c.oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("message or its files do not fit")
	}
	if err == nil && n == 0 && len(files) == 0 {
		return nil, nil, io.EOF
	}
	var m Message
	if err == nil {
		m, err = decode(c.data[:n])
	}
	if err == nil {
		err = checkFiles(m, len(files))
	}
	if err != nil {
		closeAll(files)
		return nil, nil, &Error{"receive", err}
	}
	return m, files, nil
}

// closedOr tells a closed Conn from other failures: package os does not say it in
// errors of a RawConn.
func (c *Conn) closedOr(err error) error {
	if c.closed.Load() {
		return os.ErrClosed
	}
	return err
}

// checkFiles says whether a message like m may carry n files.
func checkFiles(m Message, n int) error {
	if _, ok := m.(Exec); ok {
		if n < 2 || n > MaxFiles {
			return errors.New("exec: " + strconv.Itoa(n) + " files, want stdout, stderr and up to " +
				strconv.Itoa(MaxFiles-2) + " more")
		}
	} else if n != 0 {
		return errors.New("files with a message that takes none")
	}
	return nil
}

// takeFiles makes files of every descriptor in a control buffer. With an error it
// returns those it has found, for the caller to close.
func takeFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
