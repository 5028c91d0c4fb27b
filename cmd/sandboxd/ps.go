package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/internal/runfolder"
)

// addOutput defines --output, which ps, inspect and doctor share.
func addOutput(f *pflag.FlagSet, format *string) {
	*format = "table"
	f.VarP(choiceValue{format, []string{"table", "json"}}, "output", "o", "form of the output: table or json")
}

// addRunDir defines --run-dir of ps and inspect.
func addRunDir(f *pflag.FlagSet, dir *string) {
	f.StringVar(dir, "run-dir", runfolder.Default, "folder for the running daemons")
}

// printJSON writes v as indented JSON.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table writes rows in columns.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// needRoot explains what would else be a permission error.
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
		Long: `ps lists the sandboxes of every sandboxd that runs on this host.

Exit codes: 0 success; 2 the command line or the host is at fault.`,
		Example: `  sudo sandboxd ps
  sudo sandboxd ps --output json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(cmd); err != nil {
				return err
			}
			list, unanswered := listAll(cmd.Context(), runDir)
			var err error
			switch {
			case list == nil: // not even the daemons are known
			case format == "json":
				err = printJSON(cmd.OutOrStdout(), list)
			default:
				err = printSandboxes(cmd.OutOrStdout(), list, time.Now())
			}
			return errors.Join(err, unanswered)
		},
	}
	addOutput(cmd.Flags(), &format)
	addRunDir(cmd.Flags(), &runDir)
	return cmd
}

// printSandboxes writes the table of ps.
func printSandboxes(w io.Writer, list []sandboxInfo, now time.Time) error {
	rows := [][]string{{"SANDBOX", "FUNCTION", "STATE", "PIDS", "MEMORY", "AGE", "INVOCATIONS", "INSTANCE"}}
	for _, s := range list {
		rows = append(rows, []string{
			printable(s.ID), printable(s.Function), printable(s.State), fmt.Sprint(s.PIDs), mebibytes(int64(s.MemoryBytes)),
			now.Sub(s.Created).Truncate(time.Second).String(), fmt.Sprint(s.Invocations), printable(s.Instance),
		})
	}
	return table(w, rows)
}

// mebibytes writes a size as a table has it.
func mebibytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }

// printable keeps a name that a process chose from writing to the terminal as it likes.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
}
