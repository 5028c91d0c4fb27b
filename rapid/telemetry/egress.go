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

// Descriptors says what a process gets as stdout and stderr (docs/decisions/0005).
type Descriptors string

// Pipes can be opened again through /dev/stderr and /proc/self/fd/N; sockets keep
// the mission's word and refuse that with ENXIO. The zero value counts as Pipes.
const (
	Pipes   Descriptors = "pipe"
	Sockets Descriptors = "socket"
)

const (
	maxLine   = 256 << 10 // TL-26: a longer line is cut into several
	readBytes = 16 << 10  // of one read

	maxStreams = 3 // of one process
)

// turns has one element for each stream that is being read, and room for half as many as
// there are processors: so output, of however many processes, leaves the other half to what
// has to be answered (docs/decisions/0023-output-by-turns.md).
var turns = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))

// Egress reads what one process writes: stdout and stderr line by line, and framed
// messages if it was opened for them. Its goroutines read all the time and wait for
// nothing but their turns, so a process does not block on its output because somebody
// does not take it.
type Egress struct {
	streams []*stream
	ends    []*os.File // the writing ends, until Release
}

// Open makes the descriptors of one process and starts to read them; framed adds the
// one for section 7.1. emit gets each message, and must neither block nor keep its
// text. It is called by several goroutines, for one message of each descriptor at a time.
// The caller must Close the egress.
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
			return nil, fmt.Errorf("make %s for the output of a process: %w", kind, err)
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

// Stdout is the writing end for the process; the egress owns it. Like the other ends
// it is valid until Release.
func (e *Egress) Stdout() *os.File { return e.ends[0] }

// Stderr is the writing end for the process; the egress owns it.
func (e *Egress) Stderr() *os.File { return e.ends[1] }

// Frames is the writing end for framed messages, nil if the egress was opened without
// it; the egress owns it.
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

// Drain emits every complete line and frame that was written before the call. It never
// waits, not even for its turn: what a process has written is there to be read, even if the
// process is dead by now (LOG-12), and what a grandchild may still write does not matter
// (SUP-20). Drain, Flush and Close must not be called at the same time.
func (e *Egress) Drain() {
	quiet := e.quiet()
	for _, s := range e.streams {
		s.drain(quiet)
	}
}

// Flush is Drain, and emits an unfinished last line too. A frame whose end has not
// come yet goes on: only Close cuts it.
func (e *Egress) Flush() {
	quiet := e.quiet()
	for _, s := range e.streams {
		s.drain(quiet)
		s.flush(false)
	}
}

// quiet reports whether no stream has anything to read, with one system call for all: ppoll,
// which the worker's filter has (package confine). If it fails, or if a stream is closed,
// each is asked.
func (e *Egress) quiet() bool { return quiet(e.streams, make([]unix.PollFd, 0, maxStreams)) }

// quiet is that of an Egress for the streams given, and for descriptors that are borrowed
// already: each stays open until the kernel has answered.
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

// Close flushes, ends the reading and releases every descriptor.
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

// A cutter makes messages of a stream of bytes.
type cutter interface {
	write(p []byte)
	flush(end bool) // emits an unfinished line, and at the end an unfinished frame
}

// stream reads one descriptor.
type stream struct {
	file    *os.File
	raw     syscall.RawConn
	closing chan struct{} // closed when the reading goroutine is to end
	ended   chan struct{} // closed when it has

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

// read takes at most limit bytes that are there, and cuts them into lines.
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

// drain reads what is there now, unless it is quiet. The amount is asked first, so that
// a process that writes without end cannot hold the caller.
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
