package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/bench/engine"
	"github.com/sandboxd/sandboxd/bench/suite"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

// livesTime is how long one round of P6 takes.
const livesTime = 2 * time.Second

// measureEngine is the part of a run that happens in a process of its own: "lives" with
// whose, or "freeze" with a number.
func measureEngine(ctx context.Context, what string, args []string, stdout io.Writer) error {
	var o engine.Options
	f := flag.NewFlagSet("bench "+what, flag.ContinueOnError)
	f.StringVar(&o.Dir, "dir", "", "")
	f.StringVar(&o.Init, "init", "", "")
	f.StringVar(&o.Stage, "stage", "", "")
	f.StringVar(&o.Function, "function", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	var result any
	var err error
	if what == "lives" {
		result, err = lives(ctx, o, f.Arg(0))
	} else {
		result, err = freeze(ctx, o, f.Arg(0))
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
}

// lives measures one subject of P6: sandboxd's engine, its library alone ("library",
// "least"), or an OCI runtime, "runc" or "crun", as it is or with suite.Confined.
func lives(ctx context.Context, o engine.Options, whose string) (engine.Lives, error) {
	if peer, confined := strings.CutSuffix(whose, suite.Confined); peer == "runc" || peer == "crun" {
		return engine.Containers(ctx, o, peer, confined, runtime.NumCPU(), livesTime)
	}
	if err := runc.SealSelf(); err != nil {
		return engine.Lives{}, err
	}
	if whose == "engine" {
		return engine.Sandboxes(ctx, o, runtime.NumCPU(), livesTime)
	}
	return engine.Library(ctx, o, whose == "least", runtime.NumCPU(), livesTime)
}

func freeze(ctx context.Context, o engine.Options, times string) (engine.Freezes, error) {
	n, err := strconv.Atoi(times)
	if err != nil {
		return engine.Freezes{}, fmt.Errorf("bench freeze: %w", err)
	}
	if err := runc.SealSelf(); err != nil {
		return engine.Freezes{}, err
	}
	return engine.Freeze(ctx, o, n)
}
