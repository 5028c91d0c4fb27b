// Package telemetry handles the logs of a sandbox: the output of its processes and the
// records of the platform. An [Egress] reads stdout, stderr and framed messages, and never
// makes the writer wait. A [Log] keeps records in order, and the tail of each invocation.
// [Record.Append] renders records as lines of text or JSON. A [Hub] delivers records to the
// extensions that have subscribed. A Log and a Hub are safe for concurrent use.
package telemetry

import (
	"context"
	"io"
	"time"
)

// Source is the origin of a record (TL-04).
type Source string

// The sources of section 3.1.
const (
	FromPlatform  Source = "platform"
	FromFunction  Source = "function"
	FromExtension Source = "extension"
)

// Format is the format of platform records (LOG-45). Lines of functions and extensions are
// the same in both.
type Format string

// The formats. The zero value means Text.
const (
	Text Format = "Text"
	JSON Format = "JSON"
)

// Record is one line of output or one platform record. Records are not changed after their
// creation, so they may be kept and shared.
type Record struct {
	Time      time.Time // of arrival, or from the frame (LOG-07)
	Source    Source
	Name      string   // process that wrote it; "" for the platform
	RequestID string   // invocation during which it arrived; "" if there was none
	Level     Level    // of a framed message, else ""
	Text      string   // the line without its newline; "" for platform records
	Platform  Platform // nil unless Source is FromPlatform
}

// Append appends the record to b as complete lines. A platform record that has no
// form in f appends nothing.
func (r *Record) Append(b []byte, f Format) []byte {
	switch {
	case r.Platform == nil:
		b = append(b, r.Text...)
		return append(b, '\n')
	case f == JSON:
		return appendJSON(b, r)
	default:
		return r.Platform.appendText(b, r.Time)
	}
}

// Sink receives records in order, as many at once as are queued. It may change the records,
// but must not keep the slice. A sandbox calls it from one goroutine at a time; a sink that
// sandboxes share must be safe for concurrent use. If it is slow, records are dropped before
// they reach it, and a [LogsDropped] has their number. When the context has ended, it must
// drop records rather than wait.
type Sink interface {
	Lines(context.Context, []Record)
}

// NewWriter returns a sink that writes rendered records to w, whole records in each Write. It
// is safe for concurrent use. It ignores errors of w, because there is no other place to
// report them.
func NewWriter(w io.Writer, f Format) Sink {
	return &writer{turn: make(chan struct{}, 1), w: w, format: f}
}

// writeBytes is the approximate number of bytes that a writer collects for one Write.
const writeBytes = 32 << 10

type writer struct {
	turn   chan struct{} // capacity 1, full while a goroutine writes; guards the fields below
	w      io.Writer
	format Format
	buf    []byte
}

func (w *writer) Lines(ctx context.Context, records []Record) {
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done(): // else goroutines would wait for a stuck reader for ever
		return
	}
	defer func() { <-w.turn }()
	for i := range records {
		w.buf = records[i].Append(w.buf, w.format)
		if len(w.buf) >= writeBytes {
			w.flush()
		}
	}
	w.flush()
}

func (w *writer) flush() {
	if len(w.buf) > 0 {
		_, _ = w.w.Write(w.buf)
	}
	if w.buf = w.buf[:0]; cap(w.buf) > maxLine {
		w.buf = nil // do not keep the memory of one long line
	}
}
