package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/host/doctor"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

func runCommand() *cobra.Command {
	o := newOptions()
	settings := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	o.addSettings(settings)
	cmd := &cobra.Command{
		Use:   "run [flags] DIR|ZIP|--image IMAGE",
		Short: "Serve one function, or invoke it once with --event",
		Long: `run serves the function in DIR or ZIP, or a container image, at
POST /2015-03-31/functions/function/invocations, which the AWS SDKs and the AWS
command line know: pass --endpoint-url http://127.0.0.1:9000 to them. With --event
it invokes the function once, prints the response on standard output, and exits.

Log lines go to standard error. SIGTERM or Ctrl-C lets running invocations end, for
at most --drain-timeout, then shuts every sandbox down; a second one cuts that short.

Exit codes: 0 success; 1 function error (--event); 2 the command line, the
configuration, the function's package or the host is at fault.

Keys that only the file of --config has, with their defaults:
` + describe(settings),
		Example: `  # serve a directory with an executable 'bootstrap'
  sudo sandboxd run ./function

  # a Python function with a layer, 512 MB and a variable
  sudo sandboxd run --runtime python3.11 --handler app.handler \
      --layer deps.zip --memory 512 --env STAGE=test function.zip

  # a container image: an OCI layout, the output of docker save, or a reference
  sudo sandboxd run --image function.tar

  # invoke once
  echo '{"key":"value"}' | sudo sandboxd run --event - ./function`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("run takes one DIR or ZIP, or none with --image, but was given %d arguments; see 'sandboxd run --help'", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.code = args[0]
			}
			if o.config != "" {
				if err := applyConfig(o.config, cmd.Flags(), settings); err != nil {
					return err
				}
			}
			if err := o.complete(); err != nil {
				return err
			}
			host, err := becomeDaemon(cmd.Context(), o)
			if err != nil {
				return err
			}
			return execute(cmd.Context(), o, host, streams{cmd.OutOrStdout(), cmd.ErrOrStderr()})
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

// streams are what a command writes.
type streams struct{ out, err io.Writer }

// describe lists settings for the help.
func describe(settings *pflag.FlagSet) string {
	var b strings.Builder
	settings.VisitAll(func(f *pflag.Flag) {
		fmt.Fprintf(&b, "  %-26s%s", f.Name, f.Usage)
		if f.DefValue != "" {
			fmt.Fprintf(&b, " (%s)", f.DefValue)
		}
		b.WriteByte('\n')
	})
	return strings.TrimRight(b.String(), "\n")
}

// scopeVariable tells the process inside the scope that it is there.
const scopeVariable = "SANDBOXD_IN_SCOPE"

// becomeDaemon makes this process one that can make sandboxes: root, in a cgroup of
// its own where systemd rules, a sealed copy of its binary, on a host that has what
// is needed. It executes the program anew up to twice; nothing is acquired before.
func becomeDaemon(ctx context.Context, o *options) (runc.Host, error) {
	if uid := os.Geteuid(); uid != 0 {
		return runc.Host{}, fmt.Errorf("run needs root, not user %d: sudo sandboxd run …", uid)
	}
	host, err := runc.DetectHost()
	if err != nil {
		return host, err
	}
	if host.NeedsScope() {
		return host, enterScope()
	}
	if err := os.Unsetenv(scopeVariable); err != nil {
		return host, err
	}
	if err := runc.SealSelf(); err != nil {
		return host, err
	}
	missing := doctor.Missing(ctx, doctorHost(host, o.idBase))
	if err := ctx.Err(); err != nil {
		return host, fmt.Errorf("interrupted: %w", err)
	}
	if len(missing) > 0 {
		var list []string
		for _, f := range missing {
			list = append(list, fmt.Sprintf("%s: %s (fix: %s)", f.Check, f.Seen, f.Fix))
		}
		return host, fmt.Errorf("this host lacks what sandboxes need: %s; see 'sandboxd doctor'", strings.Join(list, "; "))
	}
	return host, nil
}

// enterScope executes the program anew in a transient scope of systemd that owns its
// part of the cgroup tree. It returns only when that fails.
func enterScope() error {
	const fix = "start it as a systemd service with Delegate=yes"
	if os.Getenv(scopeVariable) != "" {
		return fmt.Errorf("systemd gave a scope without delegation; %s", fix)
	}
	systemdRun, err := exec.LookPath("systemd-run")
	if err != nil {
		return fmt.Errorf("systemd owns the cgroup tree: %w; %s", err, fix)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	args := append([]string{"systemd-run", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--", self}, os.Args[1:]...)
	err = syscall.Exec(systemdRun, args, append(os.Environ(), scopeVariable+"=1"))
	return fmt.Errorf("execute %s: %w; %s", systemdRun, err, fix)
}

// lowerOOMScore makes the daemon a late victim when the host runs out of memory.
// Sandboxes get their own score. Not every root may do that; doctor tells.
func lowerOOMScore() error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
}

// execute runs the daemon until its work is done or ctx ends.
func execute(ctx context.Context, o *options, host runc.Host, std streams) (err error) {
	var listener net.Listener
	event, err := openEvent(o.event)
	if err != nil {
		return err
	}
	defer event.Close()
	if o.event == "" {
		if listener, err = listen(o.listen); err != nil {
			return err
		}
		defer listener.Close() // again, if nothing took it
	}

	messages := newOutlet(std.err)
	defer messages.Close(flushTime)
	s := &session{o: o, host: host, log: newLogger(messages, o.logLevel, telemetry.Format(o.logFormat))}
	if err := lowerOOMScore(); err != nil {
		s.log.WithError(err).Debug("oom_score_adj stays as it is")
	}
	defer func() {
		closeErr := s.close(ctx)
		var exit *exitError
		if closeErr != nil && errors.As(err, &exit) {
			err = &exitError{exit.code, errors.Join(exit.err, closeErr)}
		} else {
			err = errors.Join(err, closeErr)
		}
	}()
	function, err := s.open(ctx)
	if err != nil {
		return err
	}
	return s.work(ctx, function, event, listener, std)
}

// openEvent opens the event of --event: "-" is standard input, and "" is none, which is
// an empty file.
func openEvent(name string) (*os.File, error) {
	switch name {
	case "-":
		return os.Stdin, nil
	case "":
		return os.Open(os.DevNull)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--event: %w", err)
	}
	return f, nil
}

// listen takes the endpoint's address before anything else is acquired.
func listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("--listen %s: the port is in use; choose another, or :0 for any", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w", addr, err)
	}
	return l, nil
}
