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
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/bench/result"
	"github.com/sandboxd/sandboxd/bench/suite"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

const usage = `bench measures sandboxd against the floor and against other runtimes, as root.

  bench run [--only NAME,…] [--share N]   measure, and print the figures

Flags:
  --sandboxd PATH    the program to measure (bin/sandboxd)
  --programs DIR     floor, function/bootstrap and sandbox-init (.build/bench)
  --only NAME,…      these experiments only: %s
  --share N          do the Nth part of the rounds
  --json FILE        write the results
`

func main() {
	if runc.IsInit() {
		runc.Init()
	}
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
	case "lives", "freeze":
		return measureEngine(ctx, args[0], args[1:], stdout)
	case "help", "-h", "--help":
		_, err := fmt.Fprintf(stdout, usage, strings.Join(suite.Names(), ", "))
		return err
	}
	return fmt.Errorf("there is no command %q; see 'bench help'", args[0])
}

func measure(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("bench run", flag.ContinueOnError)
	f.SetOutput(io.Discard) // the error says it
	sandboxd := f.String("sandboxd", "bin/sandboxd", "")
	programs := f.String("programs", ".build/bench", "")
	only := f.String("only", "", "")
	share := f.Int("share", 1, "")
	file := f.String("json", "", "")
	if err := f.Parse(args); err != nil {
		return fmt.Errorf("%w; see 'bench help'", err)
	}
	cfg := suite.Config{Share: *share, Log: stderr}
	var err error
	if cfg.Programs, err = suite.Find(*sandboxd, *programs); err != nil {
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
	return errors.Join(err, result.Print(stdout, r))
}
