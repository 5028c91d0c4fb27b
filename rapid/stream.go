package rapid

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"
)

// Stream is the body of a streamed answer (RT-69). The runtime's goroutine calls ReadFrom,
// and the invoker's goroutine calls Chunks. ReadFrom lends its reader to Chunks, which reads
// the body itself. So bytes do not pass from one goroutine to another, which would cost a
// thread switch for each piece. If the runtime is faster than the invoker, its bytes stay in
// the buffers of the socket. The sandbox only takes part in the begin and the end.
type Stream struct {
	limits StreamLimits
	left   <-chan struct{}    // closed when the invoker has gone before it got the stream
	lent   chan *borrowedBody // from ReadFrom to Chunks
	over   context.Context    // ends when result is valid
	finish context.CancelFunc
	result *Result
}

// borrowedBody is a reader that ReadFrom lends to Chunks.
type borrowedBody struct {
	back chan struct{} // closed when Chunks returns it

	mu   sync.Mutex // held while body is read
	body io.Reader  // nil once ReadFrom has taken it back
	n    int64      // bytes read
	err  error      // why reading failed; nil at the regular end
}

// read reads from body. The error is ErrClosed once the body has been taken back.
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

// takeBack takes the body back, and returns the number of bytes read. It waits for a Read in
// progress.
func (b *borrowedBody) takeBack() (n int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.body = nil
	return b.n, b.err
}

// StreamLimits are the limits of RT-71.
type StreamLimits struct {
	Bytes int64 // largest answer in bytes
	Rate  int64 // bytes per second after the first Burst bytes; 0 means no limit
	Burst int64 // bytes without a rate limit; unused if Rate is 0
}

// streamPiece is the buffer size of a stream in bytes.
const streamPiece = 64 << 10

// ErrStreamLimit is the error of ReadFrom if there are more bytes than StreamLimits.Bytes.
var ErrStreamLimit = errors.New("the streamed response exceeds its limit")

func newStream(left <-chan struct{}, limits StreamLimits) *Stream {
	st := &Stream{limits: limits, left: left, lent: make(chan *borrowedBody)}
	st.over, st.finish = context.WithCancel(context.Background())
	return st
}

// end sets the result and ends the stream. The holder of the sandbox's token calls it, once.
func (st *Stream) end(r *Result) {
	st.result = r
	st.finish()
}

// Chunks returns the bytes of the answer in order, in non-empty pieces; each is valid until
// the next iteration. The sequence ends when the answer is complete or has failed; Result
// says which. The caller must range over all of it, because a runtime whose bytes are not
// read waits.
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

// pass reads b to its end and yields its bytes, until yield returns false; it discards the
// rest. If yield is nil, it discards all of them.
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

// Ended returns a channel that is closed when the answer is complete or has failed.
func (st *Stream) Ended() <-chan struct{} { return st.over.Done() }

// Result returns how the answer ended. Call it only after Ended is closed. Its Payload is the
// error (INV-32), or nil if the answer is complete: Chunks has yielded the bytes.
func (st *Stream) Result() *Result { return st.result }

// AfterEnd arranges for f to be called in its own goroutine after the stream has ended. stop
// cancels that, as with context.AfterFunc.
func (st *Stream) AfterEnd(f func()) (stop func() bool) { return context.AfterFunc(st.over, f) }

// ReadFrom passes r to the invoker until the end of r, and returns the number of bytes read.
// It waits while the invoker is behind. The error is ErrStreamLimit, ErrClosed if the stream
// has ended meanwhile (RT-73), or the error of r. It waits for a Read in progress, so r is not
// used after it has returned.
func (st *Stream) ReadFrom(r io.Reader) (n int64, err error) {
	b := &borrowedBody{body: r, back: make(chan struct{})}
	select {
	case st.lent <- b:
		select {
		case <-b.back:
		case <-st.over.Done(): // an invoker that reads no more must not block the runtime
		}
	case <-st.left: // discard the body, so that the runtime is not blocked
		st.pass(b, nil)
	case <-st.over.Done():
	}
	n, err = b.takeBack()
	if st.over.Err() != nil {
		err = ErrClosed
	}
	return n, err
}

// pause waits for d, and reports whether the stream has not ended meanwhile.
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

// take takes n tokens, and returns how long to wait until they are available.
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
