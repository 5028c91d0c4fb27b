package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/runfolder"
)

// addRunDir defines --run-dir of ps and inspect.
func addRunDir(f *pflag.FlagSet, dir *string) {
	f.StringVar(dir, "run-dir", runfolder.Default, "`DIR` that the daemons use as --run-dir")
}

// needRoot returns an error that says how to get root, if the user is not root.
func needRoot(cmd *cobra.Command) error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("%s needs root, not user %d: sudo %[1]s …", cmd.CommandPath(), uid)
	}
	return nil
}

func psCommand() *cobra.Command {
	var format, runDir string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the sandboxes of all running daemons",
		Long: `ps lists the sandboxes of every sandboxd daemon that runs on this host.

Exit codes: 0 success; 2 an error, such as a daemon that does not answer.`,
		Example: `  sudo sandboxd ps
  sudo sandboxd ps --output json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(cmd); err != nil {
				return err
			}
			list, unanswered := admin.List(cmd.Context(), runDir)
			var err error
			switch {
			case list == nil: // the daemons could not be listed
			case format == "json":
				err = cli.PrintJSON(cmd.OutOrStdout(), list)
			default:
				err = printSandboxes(cmd.OutOrStdout(), list, time.Now())
			}
			return errors.Join(err, unanswered)
		},
	}
	cli.AddOutput(cmd.Flags(), &format)
	addRunDir(cmd.Flags(), &runDir)
	return cmd
}

// printSandboxes writes the table of ps. now is the time that ages are relative to.
func printSandboxes(w io.Writer, list []admin.Sandbox, now time.Time) error {
	rows := [][]string{{"SANDBOX", "FUNCTION", "VERSION", "REVISION", "STATE", "PIDS", "MEMORY", "AGE", "INVOCATIONS", "INSTANCE"}}
	for _, s := range list {
		rows = append(rows, []string{
			cli.Printable(s.ID), cli.Printable(s.Function), cli.Printable(s.Version), fmt.Sprint(s.Revision.Number), cli.Printable(s.State), fmt.Sprint(s.PIDs), cli.Mebibytes(int64(s.MemoryBytes)),
			now.Sub(s.Created).Truncate(time.Second).String(), fmt.Sprint(s.Invocations), cli.Printable(s.Instance),
		})
	}
	return cli.Table(w, rows)
}
