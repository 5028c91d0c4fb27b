package worker

import (
	"fmt"
	"io"
	"sync"

	"github.com/sandboxd/sandboxd/internal/message"
)

// errFull is returned by boundedLines at its bound.
var errFull = fmt.Errorf("it has %d MB, which is all that it may have", message.MaxTraceBytes>>20)

// boundedLines writes lines to a file until the next one would make them more than left
// bytes, or until a write fails; then it writes nothing more. Each Write is one line. Safe
// for concurrent use.
type boundedLines struct {
	w io.Writer

	mu   sync.Mutex
	left int64
	err  error // why nothing more is written; nil while lines are taken
}

func (b *boundedLines) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil && int64(len(line)) > b.left {
		b.err = errFull
	}
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.w.Write(line)
	b.left -= int64(n)
	b.err = err // the disk may have taken a part of the line: no other goes behind it
	return n, err
}

// failure returns why nothing more is written, nil while lines are taken.
func (b *boundedLines) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
