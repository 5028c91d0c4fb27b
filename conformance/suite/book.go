package suite

import (
	"strings"
	"sync"
	"time"
)

// book collects what a target prints. It is an io.Writer for one writer at a time.
type book struct {
	mu    sync.Mutex
	b     strings.Builder
	more  chan struct{} // closed and replaced when something is written
	ended bool
}

func newBook() *book { return &book{more: make(chan struct{})} }

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Write(p)
	close(b.more)
	b.more = make(chan struct{})
	return len(p), nil
}

// end says that nothing more will come.
func (b *book) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	close(b.more)
	b.more = make(chan struct{})
}

func (b *book) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// wait waits until a whole line has text in it.
func (b *book) wait(text string, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		b.mu.Lock()
		all, more, ended := b.b.String(), b.more, b.ended
		b.mu.Unlock()
		if i := strings.Index(all, text); i >= 0 && strings.Contains(all[i+len(text):], "\n") || i >= 0 && strings.HasSuffix(text, "\n") {
			return true
		}
		if ended {
			return false
		}
		select {
		case <-more:
		case <-timer.C:
			return false
		}
	}
}
