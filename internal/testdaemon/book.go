package testdaemon

import (
	"bytes"
	"strings"
	"sync"
	"time"
)

// Book collects the lines that a process prints. It is an io.Writer; all its methods may
// be called from any goroutine.
type Book struct {
	mu    sync.Mutex
	lines []string
	rest  []byte        // of a line that has not ended
	more  chan struct{} // closed and replaced at every new line
	ended bool          // nothing more will come
}

// NewBook returns an empty book.
func NewBook() *Book { return &Book{more: make(chan struct{})} }

// Write adds text. It never fails.
func (b *Book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rest = append(b.rest, p...)
	for {
		i := bytes.IndexByte(b.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		b.lines = append(b.lines, string(b.rest[:i]))
		b.rest = b.rest[i+1:]
		b.wake()
	}
}

// End says that nothing more will come. It may be called again.
func (b *Book) End() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.wake()
}

// wake lets those look again who wait.
func (b *Book) wake() {
	close(b.more)
	b.more = make(chan struct{})
}

// Wait returns the first line that is wanted, those from before the call included. It
// waits for it for limit at most, and not beyond the end of the book, and reports whether
// there is one.
func (b *Book) Wait(limit time.Duration, wanted func(line string) bool) (string, bool) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for next := 0; ; {
		b.mu.Lock()
		lines, more, ended := b.lines[next:], b.more, b.ended
		b.mu.Unlock()
		for _, line := range lines {
			if wanted(line) {
				return line, true
			}
		}
		next += len(lines)
		if ended {
			return "", false
		}
		select {
		case <-more:
		case <-timeout.C:
			return "", false
		}
	}
}

// Text is everything that was written so far.
func (b *Book) Text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(append(b.lines[:len(b.lines):len(b.lines)], string(b.rest)), "\n")
}
