package lambda

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// A gate lets a number of uploads in at once. A few more wait, and the rest is refused.
type gate struct {
	places chan struct{}
	queue  chan struct{} // those that wait or are in
}

func newGate(places, waiting int) *gate {
	return &gate{make(chan struct{}, places), make(chan struct{}, places+waiting)}
}

// enter returns when there is a place, which leave gives back.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	select {
	case g.queue <- struct{}{}:
	default:
		e := refuse("TooManyRequestsException", "Rate exceeded: %d uploads are under way or wait; try again", cap(g.queue))
		e.Reason, e.RetryAfter = "CallerRateLimitExceeded", 1
		return nil, e
	}
	select {
	case g.places <- struct{}{}:
		return func() { <-g.places; <-g.queue }, nil
	case <-ctx.Done():
		<-g.queue
		return nil, ctx.Err()
	}
}

// errZip is the error of a zip with more bytes than it may have.
var errZip = errors.New("the zip is too large")

// takeUpload stores the code of a request, of which it takes most bytes. The error is errZip if it
// has more.
func (s *Service) takeUpload(ctx context.Context, r io.Reader, most int64) (*Blob, error) {
	leave, err := s.uploads.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	blob, err := s.cfg.Blobs.Put(ctx, &zipReader{r: r, left: most})
	if err != nil {
		return nil, err
	}
	return &blob, nil
}

// A zipReader fails after too many bytes.
type zipReader struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (z *zipReader) Read(p []byte) (int, error) {
	n, err := z.r.Read(p)
	if z.left -= int64(n); z.left < 0 {
		return 0, errZip
	}
	return n, err
}

// rates limits the requests of each access key.
type rates struct {
	perSecond float64
	burst     float64

	mu   sync.Mutex
	keys map[string]*bucket
}

// A bucket has a token for each request that a key may send now.
type bucket struct {
	tokens float64
	at     time.Time
}

func newRates(perSecond float64, burst int) *rates {
	return &rates{perSecond: perSecond, burst: float64(burst), keys: map[string]*bucket{}}
}

// maxRated is how many keys are remembered. Only keys whose requests are verified get here, so
// only an account with many keys reaches it.
const maxRated = 1024

// take reports whether a key may send a request now.
func (r *rates) take(key string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.keys[key]
	if b == nil {
		if len(r.keys) >= maxRated {
			for k, old := range r.keys { // those that are full again are as good as new
				if old.tokens+now.Sub(old.at).Seconds()*r.perSecond >= r.burst {
					delete(r.keys, k)
				}
			}
		}
		b = &bucket{tokens: r.burst, at: now}
		r.keys[key] = b
	}
	b.tokens = min(r.burst, b.tokens+max(0, now.Sub(b.at).Seconds())*r.perSecond)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
