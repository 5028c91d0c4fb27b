package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// lineBytes is the most that a line writer writes at once, unless one line is longer: what
// the kernel puts into a pipe as a whole, however many write to it (PIPE_BUF).
const lineBytes = 4096

// lineWriter lets several writers share one stream without mixing their lines, those of
// the daemon's other process too. What is written to it is whole lines.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write writes p as few lines at a time as keeps each write short, and a line that is
// longer than lineBytes by itself: the other process's may come in between the parts that
// a pipe takes of that one when its reader is slow.
func (l *lineWriter) Write(p []byte) (n int, err error) {
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

// outletBytes bounds the daemon's own messages that wait for a slow reader.
const outletBytes = 1 << 20

// outlet passes writes on without ever making the writer wait. What a slow reader
// leaves no room for is dropped, counted, and told once there is room again. A Write
// is one message; they stay in order. Safe for concurrent use.
type outlet struct {
	w    io.Writer
	wake chan struct{} // capacity 1: there is something to do
	done chan struct{} // closed when the last message is out

	mu      sync.Mutex
	queue   [][]byte
	bytes   int
	dropped int
	closed  bool
}

func newOutlet(w io.Writer) *outlet {
	o := &outlet{w: w, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go o.pump()
	return o
}

// Write queues p. It always succeeds.
func (o *outlet) Write(p []byte) (int, error) {
	o.mu.Lock()
	if o.closed || o.bytes+len(p) > outletBytes {
		o.dropped++
	} else {
		o.queue = append(o.queue, append([]byte(nil), p...))
		o.bytes += len(p)
	}
	o.mu.Unlock()
	o.signal()
	return len(p), nil
}

func (o *outlet) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// pump writes what is queued until the outlet is closed and empty.
func (o *outlet) pump() {
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
func (o *outlet) Close(patience time.Duration) {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.signal()
	select {
	case <-o.done:
	case <-time.After(patience):
	}
}

// newLogger makes the daemon's own log on w.
func newLogger(w io.Writer, least string, format telemetry.Format) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	level, err := logrus.ParseLevel(least)
	if err != nil {
		level = logrus.InfoLevel // not possible: the flag takes known levels only
	}
	log.SetLevel(level)
	if format == telemetry.JSON {
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true, TimestampFormat: "2006-01-02T15:04:05.000Z07:00"})
	}
	return log
}

// newSink makes the sink for the lines of functions, extensions and platform. In
// text they are printed as they are. In JSON every line is one object: a line that
// is none becomes the record of one, as the Telemetry API has it (TL-24).
func newSink(w io.Writer, format telemetry.Format) telemetry.Sink {
	plain := telemetry.NewWriter(w, format)
	if format != telemetry.JSON {
		return plain
	}
	return jsonSink{plain}
}

// jsonSink wraps lines that are no JSON objects.
type jsonSink struct{ next telemetry.Sink }

func (s jsonSink) Lines(ctx context.Context, records []telemetry.Record) {
	for i := range records {
		wrap(&records[i])
	}
	s.next.Lines(ctx, records)
}

// wrap makes an object of a line that is none, and one line of an object that is
// several, as a framed one may be.
func wrap(r *telemetry.Record) {
	if text := strings.TrimSpace(r.Text); r.Platform != nil || strings.HasPrefix(text, "{") && json.Valid([]byte(text)) {
		if strings.Contains(r.Text, "\n") {
			var line bytes.Buffer
			_ = json.Compact(&line, []byte(text)) // it is valid
			r.Text = line.String()
		}
		return
	}
	event := struct {
		Time   telemetry.Timestamp `json:"time"`
		Type   telemetry.Source    `json:"type"`
		Level  telemetry.Level     `json:"level,omitempty"` // of a framed message
		Record string              `json:"record"`
	}{telemetry.Timestamp(r.Time), r.Source, r.Level, r.Text}
	if b, err := json.Marshal(event); err == nil {
		r.Text = string(b)
	}
}
