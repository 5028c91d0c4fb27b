// Package suite measures sandboxd against a floor of our own and against other
// runtimes, in rounds that take turns, so that whatever else the host does meets all
// alike. Package result says what the figures mean.
package suite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/bench/result"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

// Config says what to measure. Programs is required.
type Config struct {
	Programs Programs
	Share    int       // do the Nth part of the rounds; less than 1 means 1
	Peers    []string  // OCI runtimes for P6: runc, crun
	Beside   bool      // P6 also of the peers Confined, and of libcontainer alone
	Only     []string  // names of experiments; none means all
	Log      io.Writer // progress
}

// suite is one run.
type suite struct {
	cfg     Config
	dir     string // for everything that the run makes
	cgroups runc.Host
	results *result.Results
}

// experiments in the order in which they run.
var experiments = []struct {
	name string
	run  func(*suite, context.Context) error
}{
	{"warm", (*suite).warm},
	{"cold", (*suite).cold},
	{"streams", (*suite).streams},
	{"freeze", (*suite).freeze},
	{"lives", (*suite).lives},
	{"blanks", (*suite).blanks},
	{"density", (*suite).density},
	{"serve", (*suite).serve},
	{"functions", (*suite).functions},
	{"deaths", (*suite).deaths},
}

// Names lists the experiments.
func Names() (names []string) {
	for _, e := range experiments {
		names = append(names, e.name)
	}
	return names
}

// Run measures. What was measured before an error is returned with it.
func Run(ctx context.Context, cfg Config) (_ *result.Results, err error) {
	for _, name := range cfg.Only {
		if !slices.Contains(Names(), name) {
			return nil, fmt.Errorf("there is no experiment %q; there are %v", name, Names())
		}
	}
	dir, err := os.MkdirTemp("", "sbxbench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o711); err != nil { // sandbox users pass through
		return nil, err
	}
	s := &suite{cfg: cfg, dir: dir, results: &result.Results{}}
	if s.cgroups, err = runc.DetectHost(); err != nil {
		return nil, err
	}
	if s.results.Host, err = s.describeHost(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	for _, e := range experiments {
		if len(cfg.Only) > 0 && !slices.Contains(cfg.Only, e.name) {
			continue
		}
		fmt.Fprintf(cfg.Log, "bench: [%3.0fs] %s\n", time.Since(began).Seconds(), e.name)
		if err := e.run(s, ctx); err != nil {
			s.results.Finish()
			return s.results, fmt.Errorf("%s: %w", e.name, err)
		}
	}
	s.results.Finish()
	return s.results, nil
}

// rounds is how many of n rounds to do.
func (s *suite) rounds(n int) int { return max(n/max(s.cfg.Share, 1), 3) }

// add records one round of latencies.
func (s *suite) add(what, subject string, d ...time.Duration) {
	s.results.Add(what, subject, result.MS, load.Milliseconds(d)...)
}

// stopAll stops servers and adds what goes wrong to *err.
func stopAll(err *error, servers ...*server) {
	for _, p := range servers {
		*err = errors.Join(*err, p.stop())
	}
}
