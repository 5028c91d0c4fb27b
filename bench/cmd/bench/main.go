// Command bench measures sandboxd and writes docs/benchmarks.md. `bench help` says how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/bench/result"
	"github.com/sandboxd/sandboxd/bench/suite"
)

const usage = `bench measures sandboxd against the floor and against other runtimes, as root.

  bench run      measure, and print the figures
  bench quick    measure a little, and compare the ratios with the baseline
  bench render   write the page of --json FILE anew, without measuring

Flags:
  --sandboxd PATH    the program to measure (bin/sandboxd)
  --programs DIR     floor, function/bootstrap, sandbox-init and sandbox-stage (.build/bench)
  --only NAME,…      run: these experiments only: %s
  --share N          run: do the Nth part of the rounds
  --json FILE        run, render: where results are
  --docs DIR         run, render: write benchmarks.md, its pictures and the baseline there
  --baseline FILE    quick: the ratios to compare with (docs/benchmarks/baseline.json)
  --events FILE      quick: write the outcome as events of go test -json

Exit codes: 0 success; 1 it could not be measured, or a ratio is a regression.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		args = []string{"help"}
	}
	switch args[0] {
	case "run":
		return measure(ctx, args[1:], stdout, stderr)
	case "quick":
		return quick(ctx, args[1:], stdout, stderr)
	case "render":
		return render(args[1:])
	case "lives", "freeze":
		return measureEngine(ctx, args[0], args[1:], stdout)
	case "help", "-h", "--help":
		_, err := fmt.Fprintf(stdout, usage, strings.Join(suite.Names(), ", "))
		return err
	}
	return fmt.Errorf("there is no command %q; see 'bench help'", args[0])
}

// programs defines the flags that say where programs are, and returns what finds them.
func programs(f *flag.FlagSet) func() (suite.Programs, error) {
	sandboxd := f.String("sandboxd", "bin/sandboxd", "")
	folder := f.String("programs", ".build/bench", "")
	return func() (suite.Programs, error) { return suite.Find(*sandboxd, *folder) }
}

func measure(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("bench run", flag.ContinueOnError)
	f.SetOutput(io.Discard) // the error says it
	find := programs(f)
	only := f.String("only", "", "")
	share := f.Int("share", 1, "")
	file, docs := outputs(f)
	if err := f.Parse(args); err != nil {
		return fmt.Errorf("%w; see 'bench help'", err)
	}
	cfg := suite.Config{Share: *share, Log: stderr, Peers: []string{"runc", "crun"}, Beside: true}
	var err error
	if cfg.Programs, err = find(); err != nil {
		return err
	}
	if *only != "" {
		cfg.Only = strings.Split(*only, ",")
	}
	r, err := suite.Run(ctx, cfg)
	if r == nil {
		return err
	}
	if *file != "" {
		err = errors.Join(err, r.Save(*file))
	}
	if err == nil && *docs != "" {
		err = errors.Join(result.Write(*docs, r), result.BaselineOf(r).Save(filepath.Join(*docs, result.Folder, "baseline.json")))
	}
	return errors.Join(err, result.Print(stdout, r))
}

func outputs(f *flag.FlagSet) (file, docs *string) {
	return f.String("json", "", ""), f.String("docs", "", "")
}

func render(args []string) error {
	f := flag.NewFlagSet("bench render", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	file, docs := outputs(f)
	if err := f.Parse(args); err != nil {
		return fmt.Errorf("%w; see 'bench help'", err)
	}
	r, err := result.Load(*file)
	if err != nil {
		return err
	}
	return result.Write(*docs, r)
}
