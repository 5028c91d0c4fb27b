package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
)

// A message is a kind, the length of its body in four bytes, and the body. These are
// the kinds.
const (
	// Of a ReadJob, on its socket.
	msgImage    = 'i' // a description, first of all but files
	msgData     = 'd' // of a layer, uncompressed; the layers come in order
	msgProgress = 'p' // how many more bytes, as stored, were read, in eight bytes
	msgEnd      = 'e' // the layer is whole
	msgFile     = 'f' // asks for the file of that name

	// To a ReadJob.
	msgLayer   = 'l' // asks for a layer, by its number from 0 in four bytes
	msgOpened  = 'o' // the file that was asked for, as a descriptor
	msgMissing = 'm' // it does not exist
	msgRefused = 'r' // it cannot be opened, for the reason in the body

	// To an UnpackJob, before the layer's msgData and msgEnd.
	msgNode  = 'n' // something that lower layers have: see encodeNode
	msgLower = 't' // that was all of it
)

const (
	headBytes      = 5
	maxData        = 64 << 10 // of a msgData, and of all that are not named here
	maxDescription = 1 << 20  // of a msgImage
)

var errProtocol = errors.New("a message is not what it should be")

// putHead writes a message's head.
func putHead(b []byte, kind byte, n int) {
	b[0] = kind
	binary.LittleEndian.PutUint32(b[1:headBytes], uint32(n))
}

func writeMessage(w io.Writer, kind byte, body []byte) error {
	b := make([]byte, headBytes+len(body))
	putHead(b, kind, len(body))
	copy(b[headBytes:], body)
	_, err := w.Write(b)
	return err
}

// readMessage reads one message into buf, which it makes larger for a description. The
// error is io.EOF only if there is no message at all.
func readMessage(r io.Reader, buf []byte) (kind byte, body []byte, err error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n, most := binary.LittleEndian.Uint32(head[1:]), uint32(maxData)
	if head[0] == msgImage {
		most = maxDescription
	}
	if n > most {
		return 0, nil, errProtocol
	}
	if int(n) > len(buf) {
		buf = make([]byte, n)
	}
	body = buf[:n]
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errProtocol, err)
	}
	return head[0], body, nil
}

// dataWriter sends what is written to it as data.
type dataWriter struct {
	w   io.Writer
	buf [headBytes + maxData]byte
}

func (d *dataWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		m := copy(d.buf[headBytes:], p[n:])
		putHead(d.buf[:], msgData, m)
		if _, err := d.w.Write(d.buf[:headBytes+m]); err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// dataReader reads the data of one layer, until its end.
type dataReader struct {
	r    io.Reader
	buf  []byte
	body []byte // not read yet
	end  bool
}

func (d *dataReader) Read(p []byte) (int, error) {
	for len(d.body) == 0 {
		if d.end {
			return 0, io.EOF
		}
		kind, body, err := readMessage(d.r, d.buf)
		switch {
		case errors.Is(err, io.EOF):
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		case kind == msgEnd:
			d.end = true
		case kind == msgData:
			d.body = body
		default:
			return 0, errProtocol
		}
	}
	n := copy(p, d.body)
	d.body = d.body[n:]
	return n, nil
}

// sendFile answers who asked for a file: with f, or with the reason why not.
func sendFile(c *net.UnixConn, f *os.File, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return writeMessage(c, msgMissing, nil)
	case err != nil:
		text := err.Error()
		return writeMessage(c, msgRefused, []byte(text[:min(len(text), maxData)]))
	}
	head := make([]byte, headBytes)
	putHead(head, msgOpened, 0)
	return descriptor.Use(f, func(fd int) error {
		_, _, err := c.WriteMsgUnix(head, unix.UnixRights(fd), nil)
		return err
	})
}

// askedFiles are the files that the other side opens for us.
type askedFiles struct{ c *net.UnixConn }

func (a askedFiles) open(name string) (io.ReadCloser, int64, error) {
	if err := writeMessage(a.c, msgFile, []byte(name)); err != nil {
		return nil, 0, err
	}
	var head [headBytes]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := a.c.ReadMsgUnix(head[:], oob)
	if err != nil || n != len(head) {
		return nil, 0, errors.Join(errProtocol, err)
	}
	if flags&unix.MSG_CTRUNC != 0 { // unix(7): the descriptor has no room here
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: unix.EMFILE}
	}
	body := make([]byte, min(binary.LittleEndian.Uint32(head[1:]), maxData))
	if _, err := io.ReadFull(a.c, body); err != nil {
		return nil, 0, errors.Join(errProtocol, err)
	}
	switch head[0] {
	case msgMissing:
		return nil, 0, fs.ErrNotExist
	case msgRefused:
		return nil, 0, errors.New(string(body))
	}
	f, err := received(oob[:oobn], name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// received is the descriptor that came with a message.
func received(oob []byte, name string) (*os.File, error) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(list) != 1 {
		return nil, errors.Join(errProtocol, err)
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errProtocol, err)
	}
	return os.NewFile(uintptr(fds[0]), name), nil
}

// longAgo ends what waits for a connection.
var longAgo = time.Unix(1, 0)

// unixConn makes a connection of a socket, which stays the caller's.
func unixConn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errProtocol
	}
	return u, nil
}

// connected are the two ends of a connection.
func connected() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	own := os.NewFile(uintptr(fds[0]), "socket")
	defer own.Close()
	theirs = os.NewFile(uintptr(fds[1]), "socket")
	if ours, err = unixConn(own); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}
