package rapid

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"
)

// Stream is the body of an answer that the runtime is still sending while the invoker
// takes it (RT-69). Each of the two sides is one goroutine: ReadFrom is the runtime's,
// Chunks the invoker's. ReadFrom lends its reader to Chunks, whose goroutine reads the
// body itself. So no goroutine hands bytes to another, which would cost a switch of
// threads for each piece, and what the runtime may be ahead of its invoker stays in the
// buffers of the sockets. The owner of the sandbox learns of begin and end only.
type Stream struct {
	limits StreamLimits
	left   <-chan struct{}    // closed when the invoker left before it knew of the stream
	lent   chan *borrowedBody // from ReadFrom to Chunks
	over   context.Context    // done when result is valid
	finish context.CancelFunc
	result *Result
}

// borrowedBody is a reader that ReadFrom lends to Chunks.
type borrowedBody struct {
	back chan struct{} // closed when Chunks gives it back

	mu   sync.Mutex // held while body is read
	body io.Reader  // nil once ReadFrom has taken it back
	n    int64      // bytes read
	err  error      // why reading failed; nil at the regular end
}

// read is body's Read; the error is ErrClosed once the body was taken back.
func (b *borrowedBody) read(p []byte, limit int64) (got int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.body == nil {
		return 0, ErrClosed
	}
	got, err = b.body.Read(p)
	if b.n += int64(got); b.n > limit {
		got, err = got-int(b.n-limit), ErrStreamLimit
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return got, err
}

// takeBack takes the body back, and returns how much of it was read. It waits for a Read
// that goes on.
func (b *borrowedBody) takeBack() (n int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.body = nil
	return b.n, b.err
}

// StreamLimits are the limits of RT-71.
type StreamLimits struct {
	Bytes int64 // the most bytes of one answer
	Rate  int64 // bytes a second once Burst bytes have passed; 0 means as fast as they are taken
	Burst int64 // bytes that pass unthrottled; matters with a Rate only
}

// streamPiece is the most that is read at once, and the memory of one stream.
const streamPiece = 64 << 10

// ErrStreamLimit is what ReadFrom returns when there are more bytes than
// StreamLimits.Bytes.
var ErrStreamLimit = errors.New("the streamed response exceeds its limit")

func newStream(left <-chan struct{}, limits StreamLimits) *Stream {
	st := &Stream{limits: limits, left: left, lent: make(chan *borrowedBody)}
	st.over, st.finish = context.WithCancel(context.Background())
	return st
}

// end makes the result known. The owner calls it, once.
func (st *Stream) end(r *Result) {
	st.result = r
	st.finish()
}

// Chunks returns the bytes in the order in which they come, in pieces that are never empty;
// each is valid until the next iteration. The sequence ends when the answer is complete or
// cannot become complete; Result says which. Range over all of it, even if the bytes are not
// wanted: a runtime that is ahead of its invoker waits.
func (st *Stream) Chunks() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		select {
		case b := <-st.lent:
			st.pass(b, yield)
			close(b.back)
		case <-st.over.Done():
			return
		}
		<-st.over.Done() // the sender of the body says how it ended
	}
}

// pass reads b to its end and yields its bytes until the invoker wants no more. A nil yield
// discards them.
func (st *Stream) pass(b *borrowedBody, yield func([]byte) bool) {
	shape := newBucket(st.limits)
	buf, wanted := make([]byte, streamPiece), yield != nil
	for {
		got, err := b.read(buf, st.limits.Bytes)
		if got > 0 && wanted {
			wanted = st.pause(shape.take(got, time.Now())) && yield(buf[:got])
		}
		if err != nil {
			return
		}
	}
}

// Ended returns a channel that is closed when the answer is complete or cannot become
// complete.
func (st *Stream) Ended() <-chan struct{} { return st.over.Done() }

// Result says how the answer ended; call it only after Ended is closed. Payload is the
// error if there is one (INV-32) and else nil: the bytes have gone through Chunks.
func (st *Stream) Result() *Result { return st.result }

// AfterEnd arranges to call f in its own goroutine when the stream has ended. Calling stop
// prevents that, as with context.AfterFunc.
func (st *Stream) AfterEnd(f func()) (stop func() bool) { return context.AfterFunc(st.over, f) }

// ReadFrom passes r on to the invoker until the end of r, and returns how many bytes it
// read. It waits while the invoker is behind. The error is ErrStreamLimit, ErrClosed
// if the stream has ended meanwhile (RT-73), or the error of r. Nobody reads from r after it has
// returned: it waits for a Read that goes on.
func (st *Stream) ReadFrom(r io.Reader) (n int64, err error) {
	b := &borrowedBody{body: r, back: make(chan struct{})}
	select {
	case st.lent <- b:
		select {
		case <-b.back:
		case <-st.over.Done(): // an invoker that takes nothing more must not hold up the runtime
		}
	case <-st.left: // it takes nothing, and holds nothing up
		st.pass(b, nil)
	case <-st.over.Done():
	}
	n, err = b.takeBack()
	if st.over.Err() != nil {
		err = ErrClosed
	}
	return n, err
}

// pause waits for d, and reports whether the stream still goes on.
func (st *Stream) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-st.over.Done():
		return false
	}
	return true
}

// bucket is a token bucket; a token is a byte.
type bucket struct {
	rate, burst, tokens float64
	filled              time.Time
}

func newBucket(l StreamLimits) *bucket {
	return &bucket{rate: float64(l.Rate), burst: float64(l.Burst), tokens: float64(l.Burst), filled: time.Now()}
}

// take takes n tokens, and returns how long it takes until they are there.
func (b *bucket) take(n int, now time.Time) time.Duration {
	if b.rate == 0 {
		return 0
	}
	b.tokens = min(b.burst, b.tokens+now.Sub(b.filled).Seconds()*b.rate) - float64(n)
	b.filled = now
	if b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens / b.rate * float64(time.Second))
}
