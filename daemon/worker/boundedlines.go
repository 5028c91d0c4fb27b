package worker

import (
	"fmt"
	"io"
	"sync"

	"github.com/sandboxd/sandboxd/internal/message"
)

// errFull is the error of boundedLines once its limit is reached.
var errFull = fmt.Errorf("the file has reached its limit of %d MB", message.MaxTraceBytes>>20)

// boundedLines writes lines to a file, at most left bytes in all. After the first line that
// does not fit, or the first failed write, it writes nothing more. Each Write must be one
// line. It is safe for concurrent use.
type boundedLines struct {
	w io.Writer

	mu   sync.Mutex
	left int64
	err  error // why it writes nothing more; nil while it accepts lines
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
	b.err = err // a failed write may have left part of a line, so no other may follow
	return n, err
}

// failure returns why nothing more is written, or nil while lines are accepted.
func (b *boundedLines) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
