// Command sandboxd runs AWS-Lambda-compatible functions in sandboxes made of namespaces
// and cgroups. This package defines the commands and their flags; other packages, such as
// daemon and host/doctor, implement what the commands do.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon/backup"
	"github.com/sandboxd/sandboxd/daemon/control"
	"github.com/sandboxd/sandboxd/daemon/unpack"
	"github.com/sandboxd/sandboxd/daemon/worker"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/layer"
)

func main() {
	switch { // the daemon starts this program for its other processes too
	case unpack.IsProcess():
		os.Exit(unpack.Main())
	case worker.IsProcess():
		os.Exit(worker.Main())
	case control.IsProcess():
		os.Exit(control.Main(control.OpenFunctions))
	case backup.IsProcess():
		os.Exit(backup.Main())
	case layer.IsProcess(): // in a sandbox
		os.Exit(layer.Main())
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	// A log reader that goes away must not end the daemon: the write fails instead.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(exit.OnSignals(context.Background(), signals), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit code. When ctx ends, a command
// that serves drains and shuts down in order; see exit.OnSignals for the faster way.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return exit.Report(root.ExecuteContext(ctx), stderr)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "sandboxd",
		Short: "Run AWS-Lambda-compatible functions in isolated sandboxes on a plain Linux host",
		Long: `sandboxd runs AWS-Lambda-compatible functions on a plain Linux host, without a
container engine and without KVM. Every execution environment gets namespaces,
cgroups, host ids and a file system of its own.

Exit codes: 0 success; 1 the function failed, a check of doctor failed, or inspect
--posture found a difference; 2 any other error, such as an invalid command line or
configuration, or a feature that the host lacks.`,
		Example: `  sudo sandboxd run ./function
  sudo sandboxd run --event event.json function.zip
  sudo sandboxd serve
  sandboxd doctor`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok && isSecret(bad.GetFlag().Name) {
			err = fmt.Errorf("invalid argument for \"--%s\" flag: %w", bad.GetFlag().Name, bad.Unwrap())
		}
		return fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())
	})
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(runCommand(), serveCommand(), deployCommand(), logsCommand(), keyCommand(), backupCommand(), restoreCommand(), doctorCommand(), psCommand(), inspectCommand(), layerCommand(), pruneCommand(), benchCommand(), versionCommand())
	return root
}

// noArgs returns an error if there are arguments. On the root command an argument is the
// name of an unknown command.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasParent() {
		return fmt.Errorf("%s takes no argument, but got %q; see '%[1]s --help'", cmd.CommandPath(), args[0])
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf(" (did you mean %q?)", near[0])
	}
	return fmt.Errorf("unknown command %q%s; see 'sandboxd --help'", args[0], hint)
}
