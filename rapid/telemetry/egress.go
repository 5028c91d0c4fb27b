package telemetry

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Descriptors is the type of a process's stdout and stderr (docs/decisions/0005).
type Descriptors string

// Pipes can be opened again through /dev/stderr and /proc/self/fd/N; for sockets that fails
// with ENXIO. The zero value means Pipes.
const (
	Pipes   Descriptors = "pipe"
	Sockets Descriptors = "socket"
)

const (
	maxLine   = 256 << 10 // TL-26: a longer line is cut into several
	readBytes = 16 << 10  // bytes of one read

	maxStreams = 3 // of one process
)

// turns is a semaphore for reading streams. It lets half as many goroutines read as there are
// processors, so that output leaves the other half for requests, however many processes
// write (docs/decisions/0023-output-by-turns.md).
var turns = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))

// Egress reads the output of one process: lines from stdout and stderr, and framed messages
// if it was opened for them. Its goroutines read all the time and wait only for their turns,
// so a process never blocks on output because a reader of the log is slow.
type Egress struct {
	streams []*stream
	ends    []*os.File // the writing ends, until Release
}

// Open creates the descriptors of one process and starts to read them. framed adds the one
// for framed messages (section 7.1). emit receives each message; it must not block, and must
// not keep the text. It is called by several goroutines, but for one message of each
// descriptor at a time. The caller must Close the egress.
func Open(kind Descriptors, framed bool, emit func(Message)) (*Egress, error) {
	cutters := []cutter{&lines{emit: emit}, &lines{emit: emit}}
	if framed {
		cutters = append(cutters, &frames{emit: emit})
	}
	e := &Egress{}
	for _, c := range cutters {
		r, w, err := pair(kind)
		if err != nil {
			_ = e.Close() // nothing was written
			return nil, fmt.Errorf("create a %s for the output of a process: %w", kind, err)
		}
		e.ends = append(e.ends, w)
		s, err := newStream(r, c)
		if err != nil {
			_, _ = r.Close(), e.Close() // nothing was written
			return nil, err
		}
		e.streams = append(e.streams, s)
	}
	return e, nil
}

// Stdout returns the writing end for the process's stdout. The egress owns it. Like the other
// ends it is valid until Release.
func (e *Egress) Stdout() *os.File { return e.ends[0] }

// Stderr returns the writing end for the process's stderr. The egress owns it.
func (e *Egress) Stderr() *os.File { return e.ends[1] }

// Frames returns the writing end for framed messages, or nil if the egress was opened without
// it. The egress owns it.
func (e *Egress) Frames() *os.File {
	if len(e.ends) < 3 {
		return nil
	}
	return e.ends[2]
}

// Release closes our copies of the writing ends, once the process has its own.
func (e *Egress) Release() {
	for _, w := range e.ends {
		_ = w.Close() // the process has its own
	}
	e.ends = nil
}

// Drain emits every complete line and frame that was written before the call. It never waits,
// not even for its turn: the bytes are in the kernel's buffers, even if the process is dead
// (LOG-12), and what a grandchild writes later does not matter (SUP-20). Drain, Flush and
// Close must not be called concurrently.
func (e *Egress) Drain() {
	quiet := e.quiet()
	for _, s := range e.streams {
		s.drain(quiet)
	}
}

// Flush is like Drain, and also emits an unfinished last line. It does not emit an unfinished
// frame: only Close does.
func (e *Egress) Flush() {
	quiet := e.quiet()
	for _, s := range e.streams {
		s.drain(quiet)
		s.flush(false)
	}
}

// quiet reports whether no stream has anything to read. It uses one system call for all of
// them: ppoll, which the worker's seccomp filter allows (package confine). If the call fails
// or a stream is closed, quiet returns false.
func (e *Egress) quiet() bool { return quiet(e.streams, make([]unix.PollFd, 0, maxStreams)) }

// quiet implements Egress.quiet. It borrows the descriptors of streams one by one and adds
// them to fds, so that each stays open until ppoll has returned.
func quiet(streams []*stream, fds []unix.PollFd) (is bool) {
	if len(streams) == 0 {
		n, err := unix.Ppoll(fds, &unix.Timespec{}, nil)
		return n == 0 && err == nil
	}
	_ = streams[0].raw.Control(func(fd uintptr) { // fails if it is closed
		is = quiet(streams[1:], append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}))
	})
	return is
}

// Close flushes, stops reading and closes every descriptor.
func (e *Egress) Close() error {
	e.Release()
	var errs []error
	for _, s := range e.streams {
		s.drain(false)
		close(s.closing)
		errs = append(errs, s.file.Close())
		<-s.ended
		s.flush(true)
	}
	return errors.Join(errs...)
}

// pair returns a reading end that the netpoller can watch and a blocking writing end.
func pair(kind Descriptors) (r, w *os.File, err error) {
	var fds [2]int
	if kind == Sockets {
		fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	} else {
		err = unix.Pipe2(fds[:], unix.O_CLOEXEC)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "output"), nil
}

// A cutter splits a stream of bytes into messages.
type cutter interface {
	write(p []byte)
	flush(end bool) // emits an unfinished line, and at the end an unfinished frame
}

// stream reads one descriptor.
type stream struct {
	file    *os.File
	raw     syscall.RawConn
	closing chan struct{} // closed to stop the reading goroutine
	ended   chan struct{} // closed when the reading goroutine has returned

	mu     sync.Mutex // held while bytes are read and cut, which keeps their order
	chunk  []byte
	cutter cutter
}

func newStream(r *os.File, c cutter) (*stream, error) {
	raw, err := r.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("watch the output of a process: %w", err)
	}
	s := &stream{file: r, raw: raw, cutter: c, closing: make(chan struct{}), ended: make(chan struct{}), chunk: make([]byte, readBytes)}
	go func() {
		defer close(s.ended)
		_ = raw.Read(func(fd uintptr) bool { // ends with EOF, an error, or the file's Close
			for {
				select {
				case turns <- struct{}{}:
				case <-s.closing:
					return true
				}
				_, err := s.read(int(fd), readBytes)
				<-turns
				if err != nil {
					return err != unix.EAGAIN
				}
			}
		})
	}()
	return s, nil
}

var errEOF = errors.New("end of output")

// read reads at most limit available bytes, and splits them into messages.
func (s *stream) read(fd, limit int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		n, err := unix.Read(fd, s.chunk[:min(limit, len(s.chunk))])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, errEOF
		}
		s.cutter.write(s.chunk[:n])
		return n, nil
	}
}

// drain reads the bytes that are available now, unless quiet is true. It asks for their
// number first, so that a process that writes without end does not keep it busy for ever.
func (s *stream) drain(quiet bool) {
	if !quiet {
		// An error is the end of the output, which the reading goroutine sees too.
		_ = s.raw.Control(func(fd uintptr) {
			there, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			for err == nil && there > 0 {
				var n int
				n, err = s.read(int(fd), there)
				there -= n
			}
		})
	}
	// The goroutine may hold bytes that it has read and not emitted yet.
	s.mu.Lock()
	//lint:ignore SA2001 taking the lock is the wait for the goroutine
	s.mu.Unlock()
}

func (s *stream) flush(end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cutter.flush(end)
}
