// Command sandboxd runs AWS-Lambda-compatible functions in sandboxes made of
// namespaces and cgroups. This package holds the commands and joins the parts; what
// the parts do is in the packages beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Exit codes, as the help of each command documents them.
const (
	exitOK       = 0
	exitFunction = 1 // the function failed, doctor found a must-have missing, or inspect a wrong posture
	exitUsage    = 2 // the command line, the configuration, or the host is at fault
)

// flushTime is how long the last messages may take to reach their reader.
const flushTime = 2 * time.Second

// exitError gives an error an exit code other than exitUsage. Without err nothing is
// printed: all has been said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func main() {
	if isUnpack() {
		os.Exit(runUnpack())
	}
	if isWorker() {
		os.Exit(runWorker())
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	// A log reader that goes away must not end the daemon: the write fails instead.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(withSignals(context.Background(), signals), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit code. When ctx ends, a command
// that serves drains and shuts down in order; see withSignals for the faster way.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return report(root.ExecuteContext(ctx), stderr)
}

// report tells an error and returns the exit code that it stands for.
func report(err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	code := exitUsage
	var exit *exitError
	if errors.As(err, &exit) {
		code, err = exit.code, exit.err
	}
	if err != nil {
		last := newOutlet(stderr) // whose reader may have stopped
		fmt.Fprintf(last, "sandboxd: %s\n", oneLine(err))
		last.Close(flushTime)
	}
	return code
}

// oneLine makes one line of an error, joined errors included.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// hurryKey finds the channel of withSignals in a context.
type hurryKey struct{}

// withSignals returns a context that ends with the first signal. The second signal
// closes the channel that hurry returns: what is still orderly is then cut short.
func withSignals(ctx context.Context, signals <-chan os.Signal) context.Context {
	second := make(chan struct{})
	ctx, cancel := context.WithCancel(context.WithValue(ctx, hurryKey{}, (<-chan struct{})(second)))
	go func() {
		<-signals
		cancel()
		<-signals
		close(second)
	}()
	return ctx
}

// hurry returns a channel that is closed when the user wants the end at once; nil,
// which is never closed, if ctx knows of no signals.
func hurry(ctx context.Context) <-chan struct{} {
	second, _ := ctx.Value(hurryKey{}).(<-chan struct{})
	return second
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "sandboxd",
		Short: "Run AWS-Lambda-compatible functions in isolated sandboxes on a plain Linux host",
		Long: `sandboxd runs AWS-Lambda-compatible functions on a plain Linux host, without a
container engine and without KVM. Every execution environment gets namespaces,
cgroups, host ids and a file system of its own.

Exit codes: 0 success; 1 the function failed, doctor found a must-have missing, or
inspect --posture a difference; 2 the command line, the configuration or the host is
at fault.`,
		Example: `  sudo sandboxd run ./function
  sudo sandboxd run --event event.json function.zip
  sandboxd doctor`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())
	})
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(runCommand(), doctorCommand(), psCommand(), inspectCommand(), benchCommand(), versionCommand())
	return root
}

// noArgs refuses arguments, and unknown commands above all.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasParent() {
		return fmt.Errorf("%s takes no argument, but was given %q; see '%[1]s --help'", cmd.CommandPath(), args[0])
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf(" (did you mean %q?)", near[0])
	}
	return fmt.Errorf("unknown command %q%s; see 'sandboxd --help'", args[0], hint)
}
