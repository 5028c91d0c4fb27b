// Package logging writes the daemon's messages, and the lines of functions, on streams whose
// readers may be slow or gone: lines stay whole, and nobody waits.
package logging

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// lineBytes is the most that a LineWriter writes at once, unless one line is longer: the
// kernel puts as much into a pipe as a whole, however many write to it (PIPE_BUF, pipe(7)).
const lineBytes = 4096

// LineWriter lets several writers share one stream without mixing their lines, those of
// the daemon's other process too. Write whole lines to it. Safe for concurrent use.
type LineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// NewLineWriter returns a LineWriter to w.
func NewLineWriter(w io.Writer) *LineWriter { return &LineWriter{w: w} }

// Write splits p into writes of few lines. A line that is longer than lineBytes is a write
// of its own: when the reader of a pipe is slow, the pipe takes such a line in parts, and a
// line of the other process may come in between.
func (l *LineWriter) Write(p []byte) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n < len(p) && err == nil {
		rest := p[n:]
		end := len(rest)
		if end > lineBytes {
			if end = bytes.LastIndexByte(rest[:lineBytes], '\n') + 1; end == 0 {
				end = cmp.Or(bytes.IndexByte(rest, '\n')+1, len(rest))
			}
		}
		var m int
		m, err = l.w.Write(rest[:end])
		n += m
	}
	return n, err
}

// asyncBytes bounds the daemon's own messages that wait for a slow reader.
const asyncBytes = 1 << 20

// AsyncWriter passes writes on without ever making the writer wait. Messages for which a
// slow reader leaves no room are dropped, counted, and reported once there is room again.
// A Write is one message; they stay in order. Safe for concurrent use. Close it.
type AsyncWriter struct {
	w    io.Writer
	wake chan struct{} // capacity 1: there is something to do
	done chan struct{} // closed when the last message is out

	mu      sync.Mutex
	queue   [][]byte
	bytes   int
	dropped int
	closed  bool
}

// NewAsyncWriter returns an AsyncWriter to w.
func NewAsyncWriter(w io.Writer) *AsyncWriter {
	o := &AsyncWriter{w: w, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go o.pump()
	return o
}

// Write queues p. It always succeeds.
func (o *AsyncWriter) Write(p []byte) (int, error) {
	o.mu.Lock()
	if o.closed || o.bytes+len(p) > asyncBytes {
		o.dropped++
	} else {
		o.queue = append(o.queue, append([]byte(nil), p...))
		o.bytes += len(p)
	}
	o.mu.Unlock()
	o.signal()
	return len(p), nil
}

func (o *AsyncWriter) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// pump writes what is queued until the AsyncWriter is closed and empty.
func (o *AsyncWriter) pump() {
	defer close(o.done)
	for range o.wake {
		o.mu.Lock()
		queue, dropped, closed := o.queue, o.dropped, o.closed
		o.queue, o.bytes, o.dropped = nil, 0, 0
		o.mu.Unlock()
		for _, p := range queue {
			_, _ = o.w.Write(p) // there is nowhere left to tell an error
		}
		if dropped > 0 {
			fmt.Fprintf(o.w, "sandboxd: %d messages were dropped: standard error is read too slowly\n", dropped)
		}
		if closed {
			return
		}
	}
}

// Close waits until everything is out, at most for patience: a reader that has
// stopped must not keep the daemon.
func (o *AsyncWriter) Close(patience time.Duration) {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.signal()
	select {
	case <-o.done:
	case <-time.After(patience):
	}
}

// New makes a log on w of messages from the level least on, one of logrus's levels by name,
// as JSON objects or as text.
func New(w io.Writer, least string, json bool) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	level, err := logrus.ParseLevel(least)
	if err != nil {
		level = logrus.InfoLevel // not possible: the flag takes known levels only
	}
	log.SetLevel(level)
	if json {
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true, TimestampFormat: "2006-01-02T15:04:05.000Z07:00"})
	}
	return log
}
