package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/message"
)

// logOptions are the settings of serve about the logs of functions.
type logOptions struct {
	totalMB, functionMB int
	age                 time.Duration
}

var defaultLogs = logOptions{totalMB: 1 << 10, functionMB: 16, age: 14 * 24 * time.Hour}

func (o *logOptions) add(f *pflag.FlagSet) {
	f.Var(cli.Int(&o.totalMB, 1, 1<<20, " MB"), "log-size", "most disk space in MB of the logs of all functions; the oldest lines make room")
	f.Var(cli.Int(&o.functionMB, 1, 1<<20, " MB"), "log-function-size", "most disk space in MB of the log of one function")
	f.Var(cli.Duration(&o.age, time.Hour, 10*365*24*time.Hour), "log-age", "how long lines of functions are kept")
}

func (o *logOptions) config() message.LogConfig {
	const perMB = 1 << 20 / message.LogSegmentBytes
	return message.LogConfig{Segments: o.totalMB * perMB, PerFunction: o.functionMB * perMB, Age: o.age}
}

func logsCommand() *cobra.Command {
	var d daemonFlags
	var follow bool
	var since time.Duration
	format := "text"
	cmd := &cobra.Command{
		Use:   "logs [--follow] [--since DURATION] FUNCTION",
		Short: "Print what a function of a running 'sandboxd serve' has logged",
		Long: `logs prints the output of a function, and the lines of the platform about it, oldest first.
Each line begins with its time. With --follow it waits for more, until it is interrupted or the
daemon exits.

It asks the running daemon, on a socket that root and the members of the group ` + admin.DefaultGroup + `
can open. What cannot be printed is replaced by question marks, so that a function cannot
steer the terminal; --output json has every line as it is.

Exit codes: 0 success; 2 an error, such as an unknown function.`,
		Example: `  sudo sandboxd logs --follow hello
  sudo sandboxd logs --since 10m hello`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !function.NameForm.MatchString(args[0]) {
				return errors.New("logs takes the name of one function; 'aws lambda list-functions' lists them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := d.find(cmd.Context())
			if err != nil {
				return err
			}
			q := admin.LogQuery{Function: args[0], Follow: follow}
			if since > 0 {
				q.Since = time.Now().Add(-since)
			}
			print := printLogLine
			if format == "json" {
				print = printLogJSON
			}
			return o.Logs(cmd.Context(), q, func(l admin.LogLine) error {
				if l.Lost {
					fmt.Fprintln(cmd.ErrOrStderr(), "sandboxd: older lines were removed before they could be read")
				}
				return print(cmd.OutOrStdout(), l)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "wait for more lines")
	f.Var(cli.Duration(&since, time.Second, 10*365*24*time.Hour), "since", "leave out lines that are older than `DURATION`, such as 10m")
	f.VarP(cli.Choice(&format, "text", "json"), "output", "o", "form of the output: text or json")
	d.add(f)
	return cmd
}

// printLogLine writes a line as text.
func printLogLine(w io.Writer, l admin.LogLine) error {
	_, err := fmt.Fprintln(w, l.Time.Local().Format("2006-01-02T15:04:05.000Z07:00"), printableLine(l.Text))
	return err
}

// printLogJSON writes a line as a line of JSON.
func printLogJSON(w io.Writer, l admin.LogLine) error {
	return json.NewEncoder(w).Encode(struct {
		Time time.Time `json:"time"`
		Text string    `json:"text"`
	}{l.Time, l.Text})
}

// printableLine is [cli.Printable] for text in any language.
func printableLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
