package suite

import (
	"context"
	"time"

	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/bench/result"
)

// connections is how many clients and sandboxes P4 has.
const connections = 8

// event is what the function echoes.
var event = []byte(`{"hello":"world"}`)

// subject is a server under a name of package result.
type subject struct {
	name string
	*server
}

// warm measures P3 and P4: invocations one after the other on one connection, and as
// many as go on eight; and what the freeze costs who comes after a pause.
func (s *suite) warm(ctx context.Context) (err error) {
	var all []subject
	defer func() {
		for _, a := range all {
			stopAll(&err, a.server)
		}
	}()
	floor, err := s.startFloor(ctx, connections)
	if err != nil {
		return err
	}
	all = append(all, subject{result.Floor, floor})
	for _, name := range []string{result.Sandboxd, result.NoLinger} {
		args := []string{"--concurrency=8", "--provisioned=8", "--pool=0"}
		if name == result.NoLinger {
			args = append(args, "--linger=0")
		}
		p, err := s.startSandboxd(ctx, args...)
		if err != nil {
			return err
		}
		all = append(all, subject{name, p})
	}
	for round := range s.rounds(40) {
		for i := range all {
			if err := s.warmRound(ctx, all[(i+round)%len(all)]); err != nil {
				return err
			}
		}
	}
	s.results.Isolation, err = s.inspect(ctx, all[1].server)
	return err
}

func (s *suite) warmRound(ctx context.Context, a subject) error {
	run := func(what string, cfg load.Config) (load.Result, error) {
		cfg.URL, cfg.Body, cfg.Warmup = a.url, event, 3
		r, err := load.Run(ctx, cfg)
		if err == nil {
			err = r.Err // not one may fail
		}
		if err == nil {
			s.add(what, a.name, r.Latencies...)
		}
		return r, err
	}
	if _, err := run(result.WarmOne, load.Config{Requests: 200}); err != nil {
		return err
	}
	r, err := run(result.WarmEight, load.Config{Requests: 1600, Connections: connections})
	if err != nil {
		return err
	}
	s.results.Add(result.WarmRate, a.name, result.PerSecond, r.Rate())
	_, err = run(result.WarmSpaced, load.Config{Requests: 5, Pause: 20 * time.Millisecond})
	return err
}
