package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/bench/engine"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

// livesTime is how long one round of P6 takes.
const livesTime = 2 * time.Second

// measureEngine is the part of a run that happens in a process of its own: "lives" with
// engine, runc or crun, or "freeze" with a number.
func measureEngine(ctx context.Context, what string, args []string, stdout io.Writer) error {
	var o engine.Options
	f := flag.NewFlagSet("bench "+what, flag.ContinueOnError)
	f.StringVar(&o.Dir, "dir", "", "")
	f.StringVar(&o.Init, "init", "", "")
	f.StringVar(&o.Function, "function", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	var result any
	var err error
	switch with := f.Arg(0); {
	case what == "lives" && with != "engine":
		result, err = engine.Containers(ctx, o, with, runtime.NumCPU(), livesTime)
	default:
		if err := runc.SealSelf(); err != nil {
			return err
		}
		if what == "lives" {
			result, err = engine.Sandboxes(ctx, o, runtime.NumCPU(), livesTime)
			break
		}
		n, bad := strconv.Atoi(with)
		if bad != nil {
			return fmt.Errorf("bench freeze: %w", bad)
		}
		result, err = engine.Freeze(ctx, o, n)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
}
