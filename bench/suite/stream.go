package suite

import (
	"context"
	"fmt"
	"time"

	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/bench/result"
)

// streams measures P9: when a streamed response begins, and how fast a long one is.
// What sandboxd sends is framed as SDKs want it; what the floor sends is not.
func (s *suite) streams(ctx context.Context) (err error) {
	floor, err := s.startFloor(ctx, 1, "--handler", "stream")
	if err != nil {
		return err
	}
	defer stopAll(&err, floor)
	p, err := s.startSandboxd(ctx, "--handler", "stream", "--concurrency=1", "--pool=0")
	if err != nil {
		return err
	}
	defer stopAll(&err, p)
	all := []subject{{result.Floor, floor}, {result.Sandboxd, p}}
	for round := range s.rounds(15) {
		for i := range all {
			a := all[(i+round)%len(all)]
			if err := s.streamRound(ctx, a); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
		}
	}
	return nil
}

const (
	shortStream = 64 << 10
	longStream  = 100 << 20
)

func (s *suite) streamRound(ctx context.Context, a subject) error {
	u := *a.url
	u.Path = load.StreamPath
	client := load.NewClient(&u, patience)
	defer client.Close()
	send := func(size int) (load.Answer, error) {
		request, err := client.Request(fmt.Append(nil, size), nil)
		if err != nil {
			return load.Answer{}, err
		}
		answer, err := client.Send(ctx, request)
		if err == nil {
			err = answer.Fault()
		}
		if err == nil && answer.Bytes < int64(size) {
			err = fmt.Errorf("a stream of %d bytes had %d", size, answer.Bytes)
		}
		return answer, err
	}
	var first []time.Duration
	for n := range 21 {
		answer, err := send(shortStream)
		if err != nil {
			return err
		}
		if n > 0 { // that was the warm-up
			first = append(first, answer.First)
		}
	}
	s.add(result.FirstByte, a.name, first...)
	answer, err := send(longStream)
	if err != nil {
		return err
	}
	s.results.Add(result.StreamRate, a.name, result.MBPerSecond, longStream/1e6/answer.Took.Seconds())
	return nil
}
