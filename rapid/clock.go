package rapid

import (
	"sync"
	"time"
)

// thawClock measures the time during which the sandbox is not frozen. It implements
// telemetry.Clock and is safe for concurrent use.
type thawClock struct {
	mu      sync.Mutex
	start   time.Time
	frozen  time.Duration // total of the freezes that have ended
	since   time.Time     // start of the current freeze; zero if thawed
	running chan struct{} // closed unless frozen
}

func newThawClock() *thawClock {
	c := &thawClock{running: make(chan struct{})}
	close(c.running)
	return c
}

func (c *thawClock) begin() {
	c.mu.Lock()
	c.start = time.Now()
	c.mu.Unlock()
}

func (c *thawClock) freeze() {
	c.mu.Lock()
	if c.since.IsZero() {
		c.since, c.running = time.Now(), make(chan struct{})
	}
	c.mu.Unlock()
}

func (c *thawClock) thaw() {
	c.mu.Lock()
	if !c.since.IsZero() {
		c.frozen += time.Since(c.since)
		c.since = time.Time{}
		close(c.running)
	}
	c.mu.Unlock()
}

// Running returns a channel that is closed if the sandbox is not frozen, or else when it is
// thawed.
func (c *thawClock) Running() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// Now returns for how long the sandbox has run without being frozen.
func (c *thawClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.start.IsZero() {
		return 0
	}
	end := c.since
	if end.IsZero() {
		end = time.Now()
	}
	return end.Sub(c.start) - c.frozen
}
