package rapid

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// Stream is the body of an answer that the runtime still sends while the invoker
// takes it (RT-69). Its bytes go from the goroutine that calls ReadFrom to the one
// that ranges over Chunks, through a few buffers that pass back and forth; they are
// not copied, and the owner of the sandbox learns of begin and end only. Each
// of the two sides is one goroutine.
type Stream struct {
	limits StreamLimits
	left   <-chan struct{} // closed when the invoker left before it knew of the stream
	full   chan []byte     // filled buffers, oldest first
	free   chan []byte     // buffers to fill
	over   context.Context // done when result is valid
	finish context.CancelFunc
	result *Result
}

// StreamLimits are the limits of RT-71.
type StreamLimits struct {
	Bytes int64 // the most bytes of one answer
	Rate  int64 // bytes a second once Burst bytes have passed; 0 means as fast as they are taken
	Burst int64 // bytes that pass unthrottled; matters with a Rate only
}

// The memory of one stream: what the runtime may be ahead of its invoker.
const (
	streamBuffers    = 4
	streamBufferSize = 32 << 10
)

// ErrStreamLimit is what ReadFrom returns when there are more bytes than
// StreamLimits.Bytes.
var ErrStreamLimit = errors.New("rapid: the streamed response exceeds its limit")

func newStream(left <-chan struct{}, limits StreamLimits) *Stream {
	st := &Stream{limits: limits, left: left, full: make(chan []byte, streamBuffers), free: make(chan []byte, streamBuffers)}
	for range streamBuffers {
		st.free <- nil // made when it is needed
	}
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
		for {
			var b []byte
			select {
			case b = <-st.full:
			case <-st.over.Done():
				select {
				case b = <-st.full: // it came before the end
				default:
					return
				}
			}
			goOn := yield(b)
			st.free <- b[:cap(b)] // has room for all there are
			if !goOn {
				return
			}
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

// ReadFrom hands on what r has until its end, and returns how many bytes it has
// read. It waits while the invoker is behind. The error is ErrStreamLimit, ErrClosed
// when the stream has ended meanwhile (RT-73), or that of r.
func (st *Stream) ReadFrom(r io.Reader) (n int64, err error) {
	shape := newBucket(st.limits)
	for {
		b, wanted, err := st.buffer()
		if err != nil {
			return n, err
		}
		got, err := r.Read(b)
		n += int64(got)
		if n > st.limits.Bytes {
			got -= int(n - st.limits.Bytes)
			err = ErrStreamLimit
		}
		if got > 0 && wanted {
			if !st.pause(shape.take(got, time.Now())) {
				return n, ErrClosed
			}
			st.full <- b[:got] // has room for all there are
		} else if wanted {
			st.free <- b
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// buffer returns an empty buffer when there is one, and whether its content is
// wanted: an invoker that has left takes nothing, and holds nothing up.
func (st *Stream) buffer() (b []byte, wanted bool, err error) {
	select {
	case <-st.over.Done():
		return nil, false, ErrClosed
	default:
	}
	select {
	case b = <-st.free:
		wanted = true
	case <-st.over.Done():
		return nil, false, ErrClosed
	case <-st.left:
	}
	if b == nil {
		b = make([]byte, streamBufferSize)
	}
	return b, wanted, nil
}

// pause waits for d, unless nobody waits for the bytes; false means that the stream
// has ended.
func (st *Stream) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-st.left:
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
