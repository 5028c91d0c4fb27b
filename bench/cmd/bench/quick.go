package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/bench/result"
	"github.com/sandboxd/sandboxd/bench/suite"
)

// attempts is how often a ratio may be beyond its bound before it counts: what is left
// of the noise of a busy machine does not come three times.
const attempts = 3

// quickShare is the part of the rounds that are done.
const quickShare = 10

// quick compares a short run with the baseline.
func quick(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("bench quick", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	find := programs(f)
	baseFile := f.String("baseline", "docs/benchmarks/baseline.json", "")
	eventsFile := f.String("events", "", "")
	if err := f.Parse(args); err != nil {
		return fmt.Errorf("%w; see 'bench help'", err)
	}
	baseline, err := result.LoadBaseline(*baseFile)
	if err != nil {
		return err
	}
	cfg := suite.Config{Share: quickShare, Log: stderr, Peers: []string{"runc"}}
	if cfg.Programs, err = find(); err != nil {
		return err
	}
	outcome, err := compare(baseline, stdout, func(only []string) (*result.Results, error) {
		cfg.Only = only
		return suite.Run(ctx, cfg)
	})
	if err != nil {
		return err
	}
	return errors.Join(writeEvents(*eventsFile, outcome), worst(outcome))
}

// compare measures, and measures again what was beyond its bound. It returns what is
// wrong with each ratio, nil if nothing is.
func compare(baseline result.Baseline, stdout io.Writer, measure func(only []string) (*result.Results, error)) (map[string]error, error) {
	outcome := map[string]error{}
	only := []string{"warm", "cold", "streams", "lives"}
	for n := 0; n < attempts && len(only) > 0; n++ {
		r, err := measure(only)
		if err != nil {
			return nil, err
		}
		again := map[string]bool{}
		for _, x := range result.Ratios(r) {
			if old, seen := outcome[x.ID]; seen && old == nil {
				continue // it was good once
			}
			err := baseline.Check(x)
			outcome[x.ID] = err
			again[x.Experiment] = again[x.Experiment] || err != nil
			fmt.Fprintf(stdout, "%-14s %6.2f  baseline %6.2f\n", x.ID, x.Value, baseline[x.ID])
		}
		only = slices.DeleteFunc(only, func(name string) bool { return !again[name] })
	}
	return outcome, nil
}

// worst joins what is wrong.
func worst(outcome map[string]error) error {
	var errs []error
	for _, err := range outcome {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// writeEvents writes what scripts/summary.sh counts: each ratio is a test.
func writeEvents(path string, outcome map[string]error) error {
	if path == "" {
		return nil
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close() // the encoder has told of errors
	e := json.NewEncoder(file)
	for id, err := range outcome {
		action := "pass"
		if err != nil {
			action = "fail"
		}
		event := struct {
			Time    time.Time
			Action  string
			Package string
			Test    string
		}{time.Now(), action, "bench", id}
		if err := e.Encode(event); err != nil {
			return err
		}
	}
	return nil
}
