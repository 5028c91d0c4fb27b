package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// TimeForm is the form of the time at the beginning of each line.
const TimeForm = "2006-01-02T15:04:05.000Z"

// Position is a place in the log of a function: bytes within the segment with that sequence.
// The zero value is the beginning.
type Position struct {
	Sequence uint64
	Offset   int64
}

// String returns the position in the form that ParsePosition reads.
func (p Position) String() string { return fmt.Sprintf("%d:%d", p.Sequence, p.Offset) }

// ParsePosition reads a position. "" is the beginning.
func ParsePosition(s string) (p Position, err error) {
	if s == "" {
		return p, nil
	}
	sequence, offset, _ := strings.Cut(s, ":")
	p.Sequence, err = strconv.ParseUint(sequence, 10, 63)
	if err == nil {
		p.Offset, err = strconv.ParseInt(offset, 10, 64)
	}
	if err != nil || p.Offset < 0 {
		return Position{}, fmt.Errorf("%.64q is no position in a log", s)
	}
	return p, nil
}

// Line is one line of a log.
type Line struct {
	Time time.Time
	Text []byte   // valid until the next line
	Next Position // after the line
	// Lost says that lines before this one have made room for others before they were read.
	Lost bool
}

// Has reports whether a function has lines.
func (l *Logs) Has(ctx context.Context, name string) bool {
	select {
	case <-l.ready:
	case <-ctx.Done():
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.functions[name]
	return f != nil && len(f.segments) > 0
}

// Read passes the lines of a function from a position on to emit. At the end it returns, or if
// follow is set waits for more, until ctx or the logs end. pause, if not nil, is called
// before it waits.
func (l *Logs) Read(ctx context.Context, name string, from Position, follow bool, emit func(Line) error, pause func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()
	select {
	case <-l.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	f := l.function(name)
	f.holders++
	l.mu.Unlock()
	r := &reader{function: f, at: from}
	defer func() {
		r.close()
		l.mu.Lock()
		defer l.mu.Unlock()
		f.holders--
		f.forget()
	}()
	for {
		more, changed, err := r.step(ctx, emit)
		if err != nil {
			return err
		}
		if more {
			continue
		}
		if !follow {
			return nil
		}
		if pause != nil {
			if err := pause(); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reader reads the log of a function.
type reader struct {
	function *Function
	at       Position
	lost     bool

	file    *os.File
	segment *segment // of file
	buf     []byte
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// step reads a part of a segment. Without more to read, changed is closed when there is.
func (r *reader) step(ctx context.Context, emit func(Line) error) (more bool, changed <-chan struct{}, err error) {
	f, l := r.function, r.function.logs
	l.mu.Lock()
	s, isLast, changed := r.find(), false, f.changed
	var size int64
	if s != nil {
		size, isLast = s.size, s == f.segments[len(f.segments)-1]
	}
	l.mu.Unlock()
	switch {
	case s == nil || r.at.Offset >= size && isLast:
		return false, changed, nil
	case r.at.Offset >= size:
		r.at = Position{Sequence: s.sequence + 1}
		return true, nil, nil
	case r.segment != s || r.file == nil:
		r.close()
		if r.file, err = l.cfg.Open(ctx, s.number, false); err != nil {
			return false, nil, fmt.Errorf("open segment %d of the logs: %w", s.number, err)
		}
		r.segment = s
	}
	if r.buf == nil {
		r.buf = make([]byte, 2*MaxLine)
	}
	part := r.buf[:min(int64(len(r.buf)), size-r.at.Offset)]
	n, err := r.file.ReadAt(part, r.at.Offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, nil, fmt.Errorf("read the logs: %w", err)
	}
	part = part[:n]
	l.mu.Lock()
	gone := s.gone
	l.mu.Unlock()
	if gone { // what was read may be another function's
		r.lost = true
		return true, nil, nil
	}
	return r.lines(part, isLast, changed, emit)
}

// find returns the segment at the position, or the next one; nil if there is none. The caller
// holds Logs.mu.
func (r *reader) find() *segment {
	all := r.function.segments
	if n := len(all); n > 0 && all[n-1].sequence < r.at.Sequence { // the log was begun anew
		r.lost, r.at = true, Position{}
	}
	for _, s := range all {
		switch {
		case s.sequence == r.at.Sequence:
			return s
		case s.sequence > r.at.Sequence:
			r.lost = r.lost || r.at.Sequence > 0
			r.at = Position{Sequence: s.sequence}
			return s
		}
	}
	return nil
}

// lines passes on the whole lines of a part.
func (r *reader) lines(part []byte, isLast bool, changed <-chan struct{}, emit func(Line) error) (bool, <-chan struct{}, error) {
	read := false
	for {
		end := bytes.IndexByte(part, '\n')
		if end < 0 {
			break
		}
		read = true
		text := part[:end]
		isHeader := r.at.Offset == 0
		r.at.Offset += int64(end) + 1
		part = part[end+1:]
		at, err := time.Parse(TimeForm, string(text[:min(len(text), len(TimeForm))]))
		if isHeader || err != nil || len(text) <= len(TimeForm) { // or the rest of a line that was cut short
			continue
		}
		if err := emit(Line{Time: at, Text: text[len(TimeForm)+1:], Next: r.at, Lost: r.lost}); err != nil {
			return false, nil, err
		}
		r.lost = false
	}
	switch {
	case read:
		return true, nil, nil
	case len(part) > 2*MaxLine-1: // is not as Write makes it
		r.at.Offset += int64(len(part))
		return true, nil, nil
	case isLast: // the line is not whole yet
		return false, changed, nil
	}
	r.at = Position{Sequence: r.at.Sequence + 1}
	return true, nil, nil
}
