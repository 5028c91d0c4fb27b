package rapid

import (
	"sync"
	"time"
)

// thawClock counts the time in which the sandbox was not frozen.
type thawClock struct {
	mu     sync.Mutex
	start  time.Time
	frozen time.Duration // sum of the freezes that have ended
	since  time.Time     // of the present freeze; zero if thawed
}

func (c *thawClock) begin() {
	c.mu.Lock()
	c.start = time.Now()
	c.mu.Unlock()
}

func (c *thawClock) freeze() {
	c.mu.Lock()
	c.since = time.Now()
	c.mu.Unlock()
}

func (c *thawClock) thaw() {
	c.mu.Lock()
	if !c.since.IsZero() {
		c.frozen += time.Since(c.since)
		c.since = time.Time{}
	}
	c.mu.Unlock()
}

func (c *thawClock) now() time.Duration {
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
