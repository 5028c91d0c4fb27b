package telemetry

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"

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
)

// turns is a semaphore for reading output. It lets half as many goroutines read as there are
// processors, so that output leaves the other half for requests, however many processes
// write (docs/decisions/0023-output-by-turns.md).
var turns = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))

// Egress reads the output of one process: lines from stdout and stderr, which are one stream,
// and framed messages, if it was opened for them, from another. It reads the streams in the
// order in which they got bytes (docs/decisions/0043-output-order.md). Its goroutine reads
// all the time and waits only for its turns, so a process never blocks on output because a
// reader of the log is slow.
type Egress struct {
	ends    []*os.File    // the writing ends, until Release
	ready   *readiness    // of streams
	closing chan struct{} // closed to stop the reading goroutine
	ended   chan struct{} // closed when the reading goroutine has returned

	mu      sync.Mutex // held while bytes are read and cut, which keeps their order
	streams []*stream
	queue   []*stream // those that may have bytes, in the order in which they are to be read
	chunk   []byte
	events  [maxStreams]unix.EpollEvent
}

// Open creates the descriptors of one process and starts to read them. framed adds the one
// for framed messages (section 7.1). emit receives each message; it must not block, and must
// not keep the text. It is called by several goroutines, but for one message at a time. The
// caller must Close the egress.
func Open(kind Descriptors, framed bool, emit func(Message)) (_ *Egress, err error) {
	cutters := []cutter{&lines{emit: emit}}
	if framed {
		cutters = append(cutters, &frames{emit: emit})
	}
	e := &Egress{closing: make(chan struct{}), ended: make(chan struct{}), chunk: make([]byte, readBytes), queue: make([]*stream, 0, maxStreams)}
	defer func() {
		if err != nil {
			e.Release()
			e.closeStreams()
		}
	}()
	var fds []int
	for _, c := range cutters {
		r, w, err := pair(kind)
		if err != nil {
			return nil, fmt.Errorf("create a %s for the output of a process: %w", kind, err)
		}
		e.ends, e.streams, fds = append(e.ends, w), append(e.streams, &stream{fd: r, cutter: c}), append(fds, r)
	}
	if e.ready, err = newReadiness(fds); err != nil {
		return nil, fmt.Errorf("watch the output of a process: %w", err)
	}
	go e.read()
	return e, nil
}

// Lines returns the writing end for the process's stdout and stderr. The egress owns it. Like
// the other end it is valid until Release.
func (e *Egress) Lines() *os.File { return e.ends[0] }

// Frames returns the writing end for framed messages, or nil if the egress was opened without
// it. The egress owns it.
func (e *Egress) Frames() *os.File {
	if len(e.ends) < 2 {
		return nil
	}
	return e.ends[1]
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
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drain()
}

// Flush is like Drain, and also emits an unfinished last line. It does not emit an unfinished
// frame: only Close does.
func (e *Egress) Flush() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drain()
	e.flush(false)
}

// Close flushes, stops reading and closes every descriptor.
func (e *Egress) Close() error {
	e.Release()
	e.Drain()
	close(e.closing)
	err := e.ready.file.Close()
	<-e.ended
	e.mu.Lock()
	defer e.mu.Unlock()
	e.flush(true)
	e.closeStreams()
	return err
}

// read is the reading goroutine. It ends with Close.
func (e *Egress) read() {
	defer close(e.ended)
	_ = e.ready.raw.Read(func(fd uintptr) bool { // an error is the file's Close
		for {
			select {
			case turns <- struct{}{}:
			case <-e.closing:
				return true
			}
			more := e.step(int(fd))
			<-turns
			if !more {
				return false
			}
		}
	})
}

// step reads once, from the stream whose turn it is. It returns false if there was none, and
// then the netpoller sees when there is.
func (e *Egress) step(fd int) (more bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.look(fd)
	if len(e.queue) == 0 {
		return false
	}
	s := e.queue[0]
	e.queue = append(e.queue[:0], e.queue[1:]...)
	if n, err := s.read(e.chunk); n > 0 && err == nil && s.available() > 0 {
		e.queue = append(e.queue, s) // there is no second event for bytes that are left
	}
	return len(e.queue) > 0
}

// look appends the streams that got bytes since it was called last to the queue. What is
// left in those that were in it already is older.
func (e *Egress) look(fd int) {
	for _, event := range take(fd, &e.events) {
		s := e.streams[event.Fd]
		if i := slices.Index(e.queue, s); i >= 0 {
			e.queue = slices.Delete(e.queue, i, i+1)
		}
		e.queue = append(e.queue, s)
	}
}

// drain reads the bytes that are available now. It asks for their number first, so that a
// process that writes without end does not keep it busy for ever. The caller holds mu, so
// that the goroutine holds no bytes that it has read and not emitted yet.
func (e *Egress) drain() {
	// An error is the end of the reading, which Close brings about after its own drain.
	_ = e.ready.raw.Control(func(fd uintptr) { e.look(int(fd)) })
	for _, s := range e.queue {
		var err error
		for n, there := 1, s.available(); err == nil && n > 0 && there > 0; there -= n { // a process can take its own output back
			n, err = s.read(e.chunk[:min(there, len(e.chunk))])
		}
	}
	e.queue = e.queue[:0] // what was written since has events of its own
}

// flush emits unfinished lines, and at the end an unfinished frame. The caller holds mu.
func (e *Egress) flush(end bool) {
	for _, s := range e.streams {
		s.cutter.flush(end)
	}
}

func (e *Egress) closeStreams() {
	for _, s := range e.streams {
		_ = unix.Close(s.fd) // nobody writes to it any more, or whoever does is not heard
	}
}

// pair returns a non-blocking reading end and a blocking writing end.
func pair(kind Descriptors) (r int, w *os.File, err error) {
	var fds [2]int
	if kind == Sockets {
		fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	} else {
		err = unix.Pipe2(fds[:], unix.O_CLOEXEC)
	}
	if err != nil {
		return 0, nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return 0, nil, err
	}
	return fds[0], os.NewFile(uintptr(fds[1]), "output"), nil
}

// A cutter splits a stream of bytes into messages.
type cutter interface {
	write(p []byte)
	flush(end bool) // emits an unfinished line, and at the end an unfinished frame
}

// stream is one descriptor of a process, from our side.
type stream struct {
	fd     int
	cutter cutter
}

// read reads available bytes into chunk, which is not empty, and splits them into messages.
// 0 bytes are the end of the output.
func (s *stream) read(chunk []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, chunk)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			return 0, err
		}
		s.cutter.write(chunk[:n])
		return n, err
	}
}

// available returns how many bytes there are to read.
func (s *stream) available() int {
	n, err := unix.IoctlGetInt(s.fd, unix.TIOCINQ)
	if err != nil { // cannot happen with a pipe or a socket that is open
		return 0
	}
	return n
}
