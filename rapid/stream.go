package rapid

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"
)

// Stream is the body of an answer that the runtime still sends while the invoker
// takes it (RT-69). The goroutine that ranges over Chunks reads the body too, as long as the one
// in ReadFrom lends it: so bytes are handed from no goroutine to another, which
// would be a switch of threads for each piece, and what the runtime may be ahead of its
// invoker is in the sockets' buffers. The owner of the sandbox learns of begin and end
// only. Each of the two sides is one goroutine.
type Stream struct {
	limits StreamLimits
	left   <-chan struct{} // closed when the invoker left before it knew of the stream
	lent   chan *loan      // from ReadFrom to Chunks
	over   context.Context // done when result is valid
	finish context.CancelFunc
	result *Result
}

// loan is a body that ReadFrom lends.
type loan struct {
	back chan struct{} // closed when it is given back

	mu   sync.Mutex // held while body is read
	body io.Reader  // nil once it is taken back
	n    int64      // bytes read
	err  error      // how it ended, nil at its regular end
}

// read is body's Read; ErrClosed if the body was taken back.
func (l *loan) read(p []byte, limit int64) (got int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.body == nil {
		return 0, ErrClosed
	}
	got, err = l.body.Read(p)
	if l.n += int64(got); l.n > limit {
		got, err = got-int(l.n-limit), ErrStreamLimit
	}
	if err != nil && !errors.Is(err, io.EOF) {
		l.err = err
	}
	return got, err
}

// end takes the body back, and returns how much was read of it.
func (l *loan) end() (n int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.body = nil
	return l.n, l.err
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
	st := &Stream{limits: limits, left: left, lent: make(chan *loan)}
	st.over, st.finish = context.WithCancel(context.Background())
	return st
}

// end makes the result known. The owner calls it, once.
func (st *Stream) end(r *Result) {
	st.result = r
	st.finish()
}

// Chunks are the bytes in the order of their coming, in pieces that are never empty;
// each is valid until the next is asked for. They end when the answer is complete or
// cannot become so: then Result tells which. Range over them to the end, wanted or
// not: a runtime that is ahead of its invoker waits.
func (st *Stream) Chunks() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		select {
		case l := <-st.lent:
			st.pass(l, yield)
			close(l.back)
		case <-st.over.Done():
			return
		}
		<-st.over.Done() // who lent the body tells how it ended
	}
}

// pass reads the body of l to its end and yields what it has, if that is wanted: yield may
// be nil.
func (st *Stream) pass(l *loan, yield func([]byte) bool) {
	shape := newBucket(st.limits)
	buf, wanted := make([]byte, streamPiece), yield != nil
	for {
		got, err := l.read(buf, st.limits.Bytes)
		if got > 0 && wanted {
			wanted = st.pause(shape.take(got, time.Now())) && yield(buf[:got])
		}
		if err != nil {
			return
		}
	}
}

// Ended is closed when the answer is complete or cannot become so.
func (st *Stream) Ended() <-chan struct{} { return st.over.Done() }

// Result says how the answer ended; call it only after Ended is closed. Payload is the
// error if there is one (INV-32) and else nil: the bytes have gone through Chunks.
func (st *Stream) Result() *Result { return st.result }

// AfterEnd has f called, on a goroutine of its own, when the stream ends. As with
// context.AfterFunc, stop withdraws that.
func (st *Stream) AfterEnd(f func()) (stop func() bool) { return context.AfterFunc(st.over, f) }

// ReadFrom hands on what r has until its end, and returns how many bytes were
// read. It waits while the invoker is behind. The error is ErrStreamLimit, ErrClosed
// when the stream has ended meanwhile (RT-73), or that of r. When it returns nobody reads
// from r any more: it waits for a Read that goes on.
func (st *Stream) ReadFrom(r io.Reader) (n int64, err error) {
	l := &loan{body: r, back: make(chan struct{})}
	select {
	case st.lent <- l:
		select {
		case <-l.back:
		case <-st.over.Done(): // an invoker that takes nothing more must not hold up the runtime
		}
	case <-st.left: // it takes nothing, and holds nothing up
		st.pass(l, nil)
	case <-st.over.Done():
	}
	n, err = l.end()
	if st.over.Err() != nil {
		err = ErrClosed
	}
	return n, err
}

// pause waits for d; false means that the stream has ended.
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

// take takes n tokens and tells how long it is until they are there.
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
