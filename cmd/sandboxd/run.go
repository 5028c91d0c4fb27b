package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

func runCommand() *cobra.Command {
	o := newOptions()
	settings := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	o.addSettings(settings)
	cmd := &cobra.Command{
		Use:   "run [flags] DIR|ZIP|--image IMAGE",
		Short: "Serve one function, or invoke it once with --event",
		Long: `run serves the function in DIR or ZIP, or a container image, at
POST /2015-03-31/functions/function/invocations. To invoke it with an AWS SDK or the
AWS command line, pass --endpoint-url http://127.0.0.1:9000 to them. With --event, run
invokes the function once, prints the response on standard output, and exits.

An asynchronous invocation (Event) gets 202 and is kept in memory only: it is lost if
sandboxd is killed or the host fails before the function has run.

With --http, the function also answers HTTP requests, such as those of a browser: each
request becomes an event of a Lambda function URL. Who can connect to that address can run
the function; there is no authentication.

Log lines go to standard error. On SIGTERM or Ctrl-C, run waits for running invocations
for at most --drain-timeout, then shuts every sandbox down. A second signal kills the
sandboxes at once.

Exit codes: 0 success; 1 function error (--event); 2 any other error, such as an
invalid command line, configuration or package, or a feature that the host lacks.

Keys that only the file of --config has, with their defaults:
` + describe(settings),
		Example: `  # serve a directory with an executable 'bootstrap'
  sudo sandboxd run ./function

  # a Python function with a layer, 512 MB and a variable
  sudo sandboxd run --runtime python3.11 --handler app.handler \
      --layer deps.zip --memory 512 --env STAGE=test function.zip

  # a container image: an OCI layout, the output of docker save, or a reference
  sudo sandboxd run --image function.tar

  # a web application, for a browser at http://127.0.0.1:8000
  sudo sandboxd run --http 127.0.0.1:8000 --runtime nodejs20.x --handler index.handler ./app

  # invoke once
  echo '{"key":"value"}' | sudo sandboxd run --event - ./function`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("run takes one DIR or ZIP, or none with --image, but got %d arguments; see 'sandboxd run --help'", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.source.Code = args[0]
			}
			o.aws.given = o.settings.credentials
			if o.config != "" {
				if err := applyConfig(o.config, cmd.Flags(), settings); err != nil {
					return err
				}
			}
			if err := o.complete(); err != nil {
				return err
			}
			// It may execute this program again, which then does all of the above once more.
			host, err := daemon.Become(cmd.Context(), uint32(o.idBase))
			if err != nil {
				return err
			}
			return o.execute(cmd.Context(), host, daemon.Streams{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr()})
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

// describe returns the list of settings for the help text.
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

// execute runs the daemon until it has served its event or ctx ends.
func (o *options) execute(ctx context.Context, host runc.Host, std daemon.Streams) (err error) {
	cfg := o.daemonConfig(host)
	if o.event != "" {
		if cfg.Event, err = openEvent(o.event); err != nil {
			return err
		}
		defer cfg.Event.Close()
	} else if cfg.Listener, err = listen("--listen", o.listen); err != nil {
		return err
	}
	if o.web.addr != "" {
		if cfg.WebListener, err = listen("--http", o.web.addr); err != nil {
			return errors.Join(err, cfg.Listener.Close())
		}
	}
	return daemon.Run(ctx, cfg, daemon.Function{Settings: o.function, Source: o.source}, std)
}

// openEvent opens the file of --event; "-" is standard input.
func openEvent(name string) (*os.File, error) {
	if name == "-" {
		return os.Stdin, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--event: %w", err)
	}
	return f, nil
}

// listen opens the socket of a flag. It comes before anything else is acquired, so that a
// port in use fails early.
func listen(flag, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s %s: the port is in use; choose another one, or :0 for a free one", flag, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, addr, err)
	}
	return l, nil
}
