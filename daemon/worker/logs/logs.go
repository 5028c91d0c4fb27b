// Package logs keeps what functions write, in segments: files of bounded size that somebody
// else opens, by their numbers. A segment belongs to one function. When a function has as many
// as it may have, or all numbers are taken, the oldest segment makes room.
//
// Writers never fail: what cannot be written is dropped and counted. Readers read the files,
// and so hold up no writer.
package logs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Config configures [Logs]. All fields but OnError must be set.
type Config struct {
	// Open opens the segment with a number from 1 to Segments, to be read, and to be written at
	// its end. If fresh, it is made or emptied.
	Open func(ctx context.Context, number int, fresh bool) (*os.File, error)
	// Existing are the numbers of the segments that exist.
	Existing []int

	Segments    int           // of all functions
	PerFunction int           // segments of one function
	Bytes       int64         // of a segment
	Age         time.Duration // a segment that was last written longer ago is emptied

	OnError func(error) // receives the first error of a series; may be nil
}

// expireEvery is how often old segments are looked for.
const expireEvery = 10 * time.Minute

// MaxLine is the most bytes of a line with its time. Longer ones are cut into several.
const MaxLine = 64 << 10

// Logs is the logs of all functions. Its methods are safe for concurrent use. Use New.
type Logs struct {
	cfg   Config
	life  context.Context
	end   context.CancelFunc
	ready chan struct{} // closed when the existing segments are known
	ended sync.WaitGroup

	mu        sync.Mutex
	functions map[string]*Function
	free      []int // numbers that no function has
	bytes     int64 // of all segments
	dropped   uint64
	failing   bool // the last write has failed
}

// Function is the log of one function.
type Function struct {
	logs *Logs
	name string

	turn chan struct{} // capacity 1, full while a goroutine writes; guards the fields below
	file *os.File      // of the last segment; nil if it is not open
	torn bool          // the last segment may end within a line
	lost uint64        // lines that were dropped since the last success

	// Guarded by Logs.mu.
	segments []*segment // oldest first
	sequence uint64     // the highest that there was
	holders  int        // sandboxes and readers
	writers  int        // of these, sandboxes
	changed  chan struct{}
}

// segment is one file. It is guarded by Logs.mu, except for number and sequence.
type segment struct {
	number   int
	sequence uint64 // of the function, from 1 on
	size     int64
	last     time.Time // when it was written
	open     bool      // for writing
	gone     bool      // it belongs to the function no more
}

// New returns the logs that the existing segments have. It reads them in the background.
func New(cfg Config) *Logs {
	if cfg.OnError == nil {
		cfg.OnError = func(error) {}
	}
	l := &Logs{cfg: cfg, ready: make(chan struct{}), functions: map[string]*Function{}}
	l.life, l.end = context.WithCancel(context.Background())
	l.ended.Go(func() {
		l.scan()
		close(l.ready)
		l.expire()
	})
	return l
}

// Close ends what works in the background, and readers. Files stay open until their writers
// have released them.
func (l *Logs) Close() {
	l.end()
	l.ended.Wait()
}

// Stats returns how many bytes all segments have, and how many lines were dropped.
func (l *Logs) Stats() (size int64, dropped uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes, l.dropped
}

// header is the first line of a segment: its sequence and the function.
var header = regexp.MustCompile(`^sandboxd log 1 ([0-9]{1,19}) ([A-Za-z0-9_-]{1,140})\n`)

const maxHeader = 256

func appendHeader(b []byte, sequence uint64, name string) []byte {
	return fmt.Appendf(b, "sandboxd log 1 %d %s\n", sequence, name)
}

// scan finds out whose the existing segments are. What another process wrote into them is not
// trusted: a segment without a header belongs to nobody.
func (l *Logs) scan() {
	taken := map[int]bool{}
	for _, number := range l.cfg.Existing {
		if number < 1 || number > l.cfg.Segments || taken[number] || l.life.Err() != nil {
			continue
		}
		if name, s := l.inspect(number); s != nil {
			taken[number] = true
			l.mu.Lock()
			f := l.function(name)
			f.segments = append(f.segments, s)
			f.sequence = max(f.sequence, s.sequence)
			l.bytes += s.size
			l.mu.Unlock()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.functions {
		f.torn = len(f.segments) > 0 // perhaps
		slices.SortFunc(f.segments, func(a, b *segment) int { return int(int64(a.sequence) - int64(b.sequence)) })
		for i := 1; i < len(f.segments); i++ { // a sequence that is there twice is not of ours
			if f.segments[i].sequence == f.segments[i-1].sequence {
				delete(taken, f.segments[i].number)
				l.bytes -= f.segments[i].size
				f.segments = slices.Delete(f.segments, i, i+1)
				i--
			}
		}
	}
	for number := l.cfg.Segments; number > 0; number-- {
		if !taken[number] {
			l.free = append(l.free, number)
		}
	}
}

// inspect reads the header of a segment. It returns nil if there is none.
func (l *Logs) inspect(number int) (name string, _ *segment) {
	file, err := l.cfg.Open(l.life, number, false)
	if err != nil {
		l.cfg.OnError(fmt.Errorf("open segment %d of the logs: %w", number, err))
		return "", nil
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", nil
	}
	head := make([]byte, maxHeader)
	n, _ := file.ReadAt(head, 0)
	m := header.FindSubmatch(head[:n])
	if m == nil {
		return "", nil
	}
	sequence, err := strconv.ParseUint(string(m[1]), 10, 63)
	if err != nil || sequence == 0 {
		return "", nil
	}
	return string(m[2]), &segment{number: number, sequence: sequence, size: info.Size(), last: info.ModTime()}
}

// function returns the log of a function, which it makes if it is missing. The caller holds
// l.mu.
func (l *Logs) function(name string) *Function {
	f := l.functions[name]
	if f == nil {
		f = &Function{logs: l, name: name, turn: make(chan struct{}, 1), changed: make(chan struct{})}
		l.functions[name] = f
	}
	return f
}

// Hold returns the log of a function for one sandbox, which must release it.
func (l *Logs) Hold(name string) *Function {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.function(name)
	f.holders++
	f.writers++
	return f
}

// Release ends one use. With the last one the file is closed.
func (f *Function) Release() {
	f.logs.mu.Lock()
	f.holders--
	f.writers--
	f.forget()
	f.logs.mu.Unlock()
	f.closeUnused()
}

// forget removes the function if nothing is known of it. The caller holds Logs.mu.
func (f *Function) forget() {
	if f.holders == 0 && len(f.segments) == 0 && f.logs.functions[f.name] == f {
		delete(f.logs.functions, f.name)
	}
}

// closeUnused closes the file if nobody writes any more. If somebody writes just now, that
// calls it again.
func (f *Function) closeUnused() {
	select {
	case f.turn <- struct{}{}:
	default:
		return
	}
	f.logs.mu.Lock()
	unused := f.writers == 0
	f.logs.mu.Unlock()
	if unused {
		f.closeFile()
	}
	<-f.turn
}

// closeFile closes the file. The caller has the turn.
func (f *Function) closeFile() {
	if f.file != nil {
		f.file.Close()
		f.file = nil
	}
	f.logs.mu.Lock()
	for _, s := range f.segments {
		s.open = false
	}
	f.logs.mu.Unlock()
}

// Write appends lines, of which none is longer than [MaxLine] and each ends with a newline.
// It waits for others that write to the same log, until ctx ends.
func (f *Function) Write(ctx context.Context, lines []byte) {
	select {
	case <-f.logs.ready:
	case <-ctx.Done():
		f.logs.drop(uint64(bytes.Count(lines, newline)))
		return
	}
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		f.logs.drop(uint64(bytes.Count(lines, newline)))
		return
	}
	f.write(ctx, lines)
	<-f.turn
	f.closeUnused()
}

var newline = []byte{'\n'}

func (l *Logs) drop(lines uint64) {
	l.mu.Lock()
	l.dropped += lines
	l.mu.Unlock()
}

// write implements Write. The caller has the turn.
func (f *Function) write(ctx context.Context, lines []byte) {
	if f.lost > 0 {
		notice := fmt.Appendf(nil, "%s sandboxd: %d lines were dropped because they could not be written\n", time.Now().UTC().Format(TimeForm), f.lost)
		if f.append(ctx, notice) != nil {
			f.fail(lines)
			return
		}
		f.lost = 0
	}
	for len(lines) > 0 {
		part := lines[:min(len(lines), MaxLine)]
		if end := bytes.LastIndexByte(part, '\n'); end >= 0 {
			part = part[:end+1]
		}
		if err := f.append(ctx, part); err != nil {
			f.logs.report(err)
			f.fail(lines)
			return
		}
		lines = lines[len(part):]
	}
	f.logs.report(nil)
}

// fail counts lines that could not be written.
func (f *Function) fail(lines []byte) {
	n := uint64(bytes.Count(lines, newline))
	f.lost += n
	f.logs.drop(n)
}

// report passes on the first error of a series.
func (l *Logs) report(err error) {
	l.mu.Lock()
	first := err != nil && !l.failing
	l.failing = err != nil
	l.mu.Unlock()
	if first {
		l.cfg.OnError(fmt.Errorf("write the logs of functions, of which lines are dropped: %w", err))
	}
}

// append writes to the last segment, or to a new one if it has no room.
func (f *Function) append(ctx context.Context, part []byte) error {
	if f.torn {
		part = append([]byte{'\n'}, part...)
	}
	s := f.last()
	if s == nil || s.size+int64(len(part)) > f.logs.cfg.Bytes {
		f.closeFile()
		fresh, file, err := f.begin(ctx)
		if err != nil {
			return err
		}
		s, f.file = fresh, file
		if f.torn {
			f.torn, part = false, part[1:]
		}
	}
	if f.file == nil {
		file, err := f.logs.cfg.Open(ctx, s.number, false)
		if err != nil {
			f.logs.mu.Lock()
			s.open = false
			f.logs.mu.Unlock()
			return err
		}
		f.file = file
	}
	n, err := f.file.Write(part)
	f.wrote(s, n)
	if n > 0 {
		f.torn = part[n-1] != '\n'
	}
	return err
}

// last returns the last segment, as one that is open for writing: nobody takes it.
func (f *Function) last() *segment {
	f.logs.mu.Lock()
	defer f.logs.mu.Unlock()
	if len(f.segments) == 0 {
		return nil
	}
	s := f.segments[len(f.segments)-1]
	s.open = true
	return s
}

// wrote records that n bytes were written to a segment, and wakes readers.
func (f *Function) wrote(s *segment, n int) {
	f.logs.mu.Lock()
	defer f.logs.mu.Unlock()
	s.size += int64(n)
	s.last = time.Now()
	f.logs.bytes += int64(n)
	close(f.changed)
	f.changed = make(chan struct{})
}

// begin makes the next segment of a function.
func (f *Function) begin(ctx context.Context) (*segment, *os.File, error) {
	l := f.logs
	l.mu.Lock()
	number, err := f.take()
	s := &segment{number: number, sequence: f.sequence + 1, open: true, last: time.Now()}
	l.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	head := appendHeader(nil, s.sequence, f.name)
	file, err := l.cfg.Open(ctx, number, true)
	if err == nil {
		var n int
		if n, err = file.Write(head); err == nil {
			l.mu.Lock()
			s.size = int64(n)
			l.bytes += s.size
			f.sequence = s.sequence
			f.segments = append(f.segments, s)
			l.mu.Unlock()
			return s, file, nil
		}
		file.Close()
	}
	l.mu.Lock()
	l.free = append(l.free, number)
	l.mu.Unlock()
	return nil, nil, err
}

// take returns the number of a segment that f may use. The caller holds Logs.mu.
func (f *Function) take() (int, error) {
	l := f.logs
	switch n := len(l.free); {
	case len(f.segments) >= l.cfg.PerFunction:
		return f.remove(0), nil
	case n > 0:
		number := l.free[n-1]
		l.free = l.free[:n-1]
		return number, nil
	}
	var owner *Function
	var at int
	for _, other := range l.functions {
		for i, s := range other.segments {
			if !s.open && (owner == nil || s.last.Before(owner.segments[at].last)) {
				owner, at = other, i
			}
		}
	}
	if owner == nil {
		return 0, fmt.Errorf("all %d segments are being written; raise log-size", l.cfg.Segments)
	}
	number := owner.remove(at)
	owner.forget()
	return number, nil
}

// remove takes a segment from the function, and returns its number. The caller holds Logs.mu.
func (f *Function) remove(i int) int {
	s := f.segments[i]
	s.gone = true
	f.logs.bytes -= s.size
	f.segments = slices.Delete(f.segments, i, i+1)
	return s.number
}

// expire empties old segments, until the logs end.
func (l *Logs) expire() {
	ticker := time.NewTicker(expireEvery)
	defer ticker.Stop()
	for l.life.Err() == nil {
		l.expireBefore(time.Now().Add(-l.cfg.Age))
		select {
		case <-ticker.C:
		case <-l.life.Done():
		}
	}
}

// expireBefore empties the segments that were last written before a time.
func (l *Logs) expireBefore(oldest time.Time) {
	l.mu.Lock()
	var old []int
	for _, f := range l.functions {
		for i := 0; i < len(f.segments); {
			if s := f.segments[i]; !s.open && s.last.Before(oldest) {
				old = append(old, f.remove(i))
			} else {
				i++
			}
		}
		f.forget()
	}
	l.mu.Unlock()
	for _, number := range old {
		file, err := l.cfg.Open(l.life, number, true)
		if err == nil {
			file.Close()
		} else if l.life.Err() == nil {
			l.cfg.OnError(fmt.Errorf("empty an old segment of the logs: %w", err))
		}
		l.mu.Lock()
		l.free = append(l.free, number) // it is emptied when it is used
		l.mu.Unlock()
	}
}
