// Command conformance checks a Lambda environment against the specification of
// docs/spec, over the wire, one case per requirement. `conformance help` says how.
//
// It is also the function and the extensions of its own cases: started as a bootstrap
// or from a folder of extensions it plays their part. For that it must be static.
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
	"regexp"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/conformance"
	"github.com/sandboxd/sandboxd/conformance/actor"
	"github.com/sandboxd/sandboxd/conformance/cases"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

const usage = `conformance checks a Lambda environment, over the wire, one case per requirement.

  conformance run [--target sandboxd] [--sandboxd PATH]
  conformance run --target exec --command 'COMMAND' [--has extensions,variables]
  conformance list                     the requirements and what covers them
  conformance check [--root DIR]       every requirement has a case or a test
  conformance clients EVENTS           writes the clients matrix, from what go test -json
                                       said of it, into the documentation

Flags of run:
  --only REGEX      only the requirements whose id matches
  --json FILE       write the results as JSON
  --markdown FILE   write the page of the documentation
  --events FILE     write the results as events of 'go test -json'
  --logs DIR        keep what the target printed, ID.log for each failed case
  --pending FILE    ids that are known to fail, "ID reason" a line
                    (default: the built-in list for sandboxd, none for exec)

COMMAND is for /bin/sh and provides one environment until it gets SIGTERM. Then it must
end within 20 seconds, with everything that it has started. In it:
` + suite.Placeholders + `

Exit codes: 0 all passed or known to be pending; 1 a case failed; 2 it could not run.
`

// errFailed says that the check itself worked, and found something.
var errFailed = errors.New("not conforming")

func main() {
	if actor.Daemon() {
		return
	}
	if config, ok := actor.Role(os.Args[0]); ok {
		os.Exit(actor.Main(config))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, errFailed):
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(2)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		args = []string{"help"}
	}
	switch args[0] {
	case "run":
		return runCases(ctx, args[1:], stdout, stderr)
	case "list":
		return list(args[1:], stdout)
	case "check":
		return check(args[1:], stdout)
	case "clients":
		return clients(args[1:])
	case "help", "--help", "-h":
		_, err := io.WriteString(stdout, usage)
		return err
	}
	return fmt.Errorf("no such command: %s\n%s", args[0], usage)
}

type runFlags struct {
	target, sandboxd, command, has, only, json, markdown, events, logs, pending, root string
}

func (f *runFlags) parse(args []string) error {
	fs := flag.NewFlagSet("run", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&f.target, "target", "sandboxd", "")
	fs.StringVar(&f.sandboxd, "sandboxd", "bin/sandboxd", "")
	fs.StringVar(&f.command, "command", "", "")
	fs.StringVar(&f.has, "has", "", "")
	fs.StringVar(&f.only, "only", "", "")
	fs.StringVar(&f.json, "json", "", "")
	fs.StringVar(&f.markdown, "markdown", "", "")
	fs.StringVar(&f.events, "events", "", "")
	fs.StringVar(&f.logs, "logs", "", "")
	fs.StringVar(&f.pending, "pending", "", "")
	fs.StringVar(&f.root, "root", ".", "")
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("%w\n%s", err, usage)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("run takes no arguments, but got %q", fs.Args())
	}
	return nil
}

func runCases(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var f runFlags
	if err := f.parse(args); err != nil {
		return err
	}
	requirements, err := readSpec(f.root)
	if err != nil {
		return err
	}
	coverage, err := suite.Table(conformance.Coverage)
	if err != nil {
		return err
	}
	pending, err := pendingOf(f)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "conformance-actor")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	target, err := targetOf(f, scratch)
	if err != nil {
		return err
	}
	r := suite.Run{Target: target, Pending: pending, Each: func(res suite.Result) {
		fmt.Fprintf(stderr, "%-8s %-8s %7.0f ms  %s\n", res.ID, res.Status, float64(res.Took.Microseconds())/1000, res.Seen)
	}}
	if f.only != "" {
		if r.Only, err = regexp.Compile(f.only); err != nil {
			return fmt.Errorf("--only: %w", err)
		}
	}
	if f.logs != "" {
		r.Keep = func(id, log string) {
			if err := os.WriteFile(filepath.Join(f.logs, id+".log"), []byte(log), 0o644); err != nil {
				fmt.Fprintln(stderr, "conformance: --logs:", err)
			}
		}
	}
	results, err := r.All(ctx, cases.All())
	if err != nil {
		return err
	}
	report := &suite.Report{Target: f.target, Requirements: requirements, Results: results, Coverage: coverage, Pending: pending}
	if f.target == "sandboxd" {
		report.Clients = conformance.Clients
	}
	if err := write(report, f, stdout); err != nil {
		return err
	}
	if report.Bad() {
		return errFailed
	}
	return nil
}

// write prints the table, and the files that are asked for.
func write(report *suite.Report, f runFlags, stdout io.Writer) error {
	for _, out := range []struct {
		path  string
		write func(io.Writer) error
	}{{f.json, report.JSON}, {f.markdown, report.Markdown}, {f.events, report.Events}} {
		if out.path == "" {
			continue
		}
		var b strings.Builder
		if err := out.write(&b); err != nil {
			return err
		}
		if err := os.WriteFile(out.path, []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return report.Text(stdout)
}

func pendingOf(f runFlags) (map[string]string, error) {
	if f.pending != "" {
		text, err := os.ReadFile(f.pending)
		if err != nil {
			return nil, err
		}
		return suite.Table(string(text))
	}
	if f.target == "sandboxd" {
		return suite.Table(conformance.Pending)
	}
	return nil, nil
}

// sandboxdLine starts sandboxd with one sandbox at most, so that all invocations of a
// case meet the same environment.
const sandboxdLine = `exec %s run --listen {listen} --concurrency 1 --timeout {timeout}s --memory {memory} --handler {handler} {env:--env} {layer:--layer} {http:--http} {args} {dir}`

// targetOf makes the target, with this very program as its actors.
func targetOf(f runFlags, scratch string) (suite.Target, error) {
	bin, err := copySelf(scratch)
	if err != nil {
		return nil, err
	}
	switch f.target {
	case "sandboxd":
		path, err := filepath.Abs(f.sandboxd)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("%w: run make build, or say where it is with --sandboxd", err)
		}
		if os.Geteuid() != 0 {
			return nil, errors.New("sandboxd needs root: sudo conformance run …")
		}
		line := fmt.Sprintf(sandboxdLine, "'"+path+"'")
		return &suite.Command{Line: line, Has: []string{suite.Extensions, suite.Variables, suite.Arguments, suite.URLs}, Actor: bin}, nil
	case "exec":
		if f.command == "" {
			return nil, errors.New("--target exec needs --command")
		}
		if _, err := suite.Place(f.command, suite.Values{}); err != nil {
			return nil, err
		}
		return &suite.Command{Line: f.command, Has: strings.Split(f.has, ","), Actor: bin}, nil
	}
	return nil, fmt.Errorf("no such target: %s; there are sandboxd and exec", f.target)
}
