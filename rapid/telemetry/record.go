// Package telemetry carries what a sandbox has to say: the output of its processes
// and the platform's own records. It reads stdout, stderr and framed messages without
// ever making the writer wait ([Egress]), keeps the order and the tail of an invocation
// ([Log]), renders records as text or JSON lines ([Record.Append]), and delivers them
// to the extensions that have subscribed ([Hub]).
package telemetry

import (
	"context"
	"io"
	"time"
)

// Source says where a record comes from (TL-04).
type Source string

// The sources of section 3.1.
const (
	FromPlatform  Source = "platform"
	FromFunction  Source = "function"
	FromExtension Source = "extension"
)

// Format is how platform records are written (LOG-45). Lines of functions and
// extensions are passed on as they are in both.
type Format string

// The two formats; the zero value counts as Text.
const (
	Text Format = "Text"
	JSON Format = "JSON"
)

// Record is one line of output or one platform record. It is a value: nothing in
// it changes after it was made, so it may be kept and shared.
type Record struct {
	Time      time.Time // of arrival, or as a frame says (LOG-07)
	Source    Source
	Name      string   // process that wrote it, "" for the platform
	RequestID string   // invocation in whose time it arrived, "" outside of one
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

// Sink takes records in order, as many at once as there are. It may change the records
// that it is given, and must not keep the slice. A sandbox calls it from one goroutine
// at a time; a sink shared by sandboxes must be safe for concurrent use. It may be
// slow: then records are dropped before it and a [LogsDropped] says how many. When the
// context has ended nobody waits for the records any more: it drops them rather than wait.
type Sink interface {
	Lines(context.Context, []Record)
}

// NewWriter returns a sink that renders records to w, whole records in each Write, safe
// for concurrent use. Errors of w are ignored: nowhere is left to report them.
func NewWriter(w io.Writer, f Format) Sink {
	return &writer{turn: make(chan struct{}, 1), w: w, format: f}
}

// writeBytes is about how many bytes a writer collects for one Write.
const writeBytes = 32 << 10

type writer struct {
	turn   chan struct{} // capacity 1, full while somebody writes; guards what follows
	w      io.Writer
	format Format
	buf    []byte
}

func (w *writer) Lines(ctx context.Context, records []Record) {
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done(): // else the goroutines that wait for a stuck reader would stay for ever
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
		w.buf = nil // one long line must not keep its memory
	}
}
