package load

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what to send. URL is required, and one of Requests and Duration.
type Config struct {
	URL         *url.URL
	Body        []byte // the event
	Header      http.Header
	Connections int           // requests at once, each on a connection of its own; less than 1 means 1
	Requests    int           // to send in all; 0: as many as Duration allows
	Duration    time.Duration // how long to send; 0: as long as Requests take
	Warmup      int           // requests on each connection before anything is measured
	Pause       time.Duration // on each connection, before each request
	Timeout     time.Duration // of one request; 0 means a minute
	Patience    time.Duration // from the first request that is not answered to the end of the run with its error, unless an answer comes; 0 means [DefaultPatience]
}

// DefaultPatience is how long a run goes on when its endpoint has stopped to answer.
const DefaultPatience = 10 * time.Second

// The pause of a connection after a request that was not answered. It doubles from the
// first to the longest, so that a dead endpoint costs neither side much, and starts anew
// with the next answer.
const (
	firstPause   = time.Millisecond
	longestPause = 250 * time.Millisecond
)

// Result is what was measured.
type Result struct {
	Latencies []time.Duration // of requests that were answered well
	Took      time.Duration   // from the first request to the last answer
	Bytes     int64           // of all bodies
	Errors    int
	Err       error // the first of them
}

// Rate is how many requests were answered well in a second.
func (r Result) Rate() float64 {
	if r.Took == 0 {
		return 0
	}
	return float64(len(r.Latencies)) / r.Took.Seconds()
}

// Summary describes the latencies.
func (r Result) Summary() Summary { return Summarize(r.Latencies) }

// Run sends requests until all are sent, the time is over or ctx ends. Answers that are
// errors are counted and not measured. Run returns an error if the configuration cannot
// be, if the endpoint does not answer the warm-up, and, with what was measured so far, if
// it has not answered on one of the connections for as long as the patience lasts.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if cfg.Requests <= 0 && cfg.Duration <= 0 {
		return Result{}, errors.New("neither a number of requests nor a duration is given")
	}
	d := &driver{cfg: cfg, connections: make([]connection, max(cfg.Connections, 1))}
	if d.cfg.Timeout == 0 {
		d.cfg.Timeout = time.Minute
	}
	if d.cfg.Patience == 0 {
		d.cfg.Patience = DefaultPatience
	}
	defer d.close()
	if err := d.each(func(c *connection) error { return d.warm(ctx, c) }); err != nil {
		return Result{}, fmt.Errorf("%s: %w", cfg.URL, err)
	}
	began := time.Now()
	if cfg.Duration > 0 {
		d.until = began.Add(cfg.Duration)
	}
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	_ = d.each(func(c *connection) error {
		if err := d.measure(running, c); err != nil {
			stop(err) // for the others too, whose endpoint is the same
		}
		return nil
	})
	err := context.Cause(running)
	r := Result{Took: time.Since(began)}
	for _, c := range d.connections {
		r.Latencies = append(r.Latencies, c.latencies...)
		r.Bytes += c.bytes
		r.Errors += c.errors
		if r.Err == nil {
			r.Err = c.err
		}
	}
	return r, err
}

// driver is one Run.
type driver struct {
	cfg         Config
	connections []connection
	until       time.Time // zero: no end
	sent        atomic.Int64
}

// connection is one client, and what it has measured.
type connection struct {
	client    *Client
	request   []byte
	latencies []time.Duration
	bytes     int64
	errors    int
	err       error
}

// each runs f for every connection at once.
func (d *driver) each(f func(*connection) error) error {
	errs := make([]error, len(d.connections))
	var wg sync.WaitGroup
	for i := range d.connections {
		wg.Go(func() { errs[i] = f(&d.connections[i]) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (d *driver) close() {
	for _, c := range d.connections {
		if c.client != nil {
			c.client.Close()
		}
	}
}

// warm connects, and sends what is not measured.
func (d *driver) warm(ctx context.Context, c *connection) (err error) {
	c.client = NewClient(d.cfg.URL, d.cfg.Timeout)
	if c.request, err = c.client.Request(d.cfg.Body, d.cfg.Header); err != nil {
		return err
	}
	if err := c.client.Connect(ctx); err != nil {
		return err
	}
	for range d.cfg.Warmup {
		a, err := c.client.Send(ctx, c.request)
		if err == nil {
			err = a.Fault()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// measure sends requests on one connection. Its error says for how long the endpoint has
// not answered, and why.
func (d *driver) measure(ctx context.Context, c *connection) error {
	silence := silence{}
	for ctx.Err() == nil {
		if d.cfg.Requests > 0 && d.sent.Add(1) > int64(d.cfg.Requests) {
			return nil
		}
		if d.cfg.Pause > 0 && !pause(ctx, d.cfg.Pause) {
			return nil
		}
		if !d.until.IsZero() && time.Now().After(d.until) {
			return nil
		}
		a, err := c.client.Send(ctx, c.request)
		if err != nil && ctx.Err() == nil {
			c.fail(err)
			if err := silence.last(ctx, d.cfg.Patience, err); err != nil {
				return fmt.Errorf("%s: %w", d.cfg.URL, err)
			}
			continue
		}
		silence.end()
		if err == nil {
			err = a.Fault()
		}
		if err != nil {
			c.fail(err)
			continue
		}
		c.latencies = append(c.latencies, a.Took)
		c.bytes += a.Bytes
	}
	return nil
}

// fail counts a request that was not answered well.
func (c *connection) fail(err error) {
	c.errors++
	if c.err == nil {
		c.err = err
	}
}

// silence is the time since an endpoint answered last. The zero value has not begun.
type silence struct {
	since time.Time
	pause time.Duration
}

// last pauses after a request that was not answered because of err. It returns an error
// if there has been no answer for as long as patience.
func (s *silence) last(ctx context.Context, patience time.Duration, err error) error {
	now := time.Now()
	if s.since.IsZero() {
		*s = silence{now, firstPause}
	} else if now.Sub(s.since) >= patience {
		return fmt.Errorf("no answer for %v: %w", patience, err)
	}
	pause(ctx, s.pause)
	s.pause = min(2*s.pause, longestPause)
	return nil
}

// end says that the endpoint has answered.
func (s *silence) end() { *s = silence{} }

// pause returns false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
