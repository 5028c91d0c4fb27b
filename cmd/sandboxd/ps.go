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

	"github.com/sandboxd/sandboxd/inspect"
	"github.com/sandboxd/sandboxd/instance"
)

// addOutput defines --output, which ps, inspect and doctor share.
func addOutput(f *pflag.FlagSet, format *string) {
	*format = "table"
	f.VarP(choiceValue{format, []string{"table", "json"}}, "output", "o", "form of the output: table or json")
}

// addRunDir defines --run-dir of ps and inspect.
func addRunDir(f *pflag.FlagSet, dir *string) {
	f.StringVar(dir, "run-dir", instance.DefaultRunDir, "folder for the running daemons")
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
			s.ID, s.Function, s.State, fmt.Sprint(s.PIDs), mebibytes(int64(s.MemoryBytes)),
			now.Sub(s.Created).Truncate(time.Second).String(), fmt.Sprint(s.Invocations), s.Instance,
		})
	}
	return table(w, rows)
}

// mebibytes writes a size as a table has it.
func mebibytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }

// inspection is what inspect prints as JSON.
type inspection struct {
	sandboxInfo
	Processes []inspect.Process `json:"processes"`
}

func inspectCommand() *cobra.Command {
	var format, runDir string
	cmd := &cobra.Command{
		Use:   "inspect ID",
		Short: "Show the isolation in force for every process of a sandbox",
		Long: `inspect reads from the kernel what holds for every process of the sandbox whose id
is or begins with ID: namespaces, cgroup and limits, ids, capabilities, no_new_privs,
seccomp and the root file system. Frozen sandboxes are no exception.

Exit codes: 0 success; 2 the command line or the host is at fault, or there is no
such sandbox.`,
		Example: `  sudo sandboxd inspect function-3f2a11
  sudo sandboxd inspect function-3f --output json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return fmt.Errorf("inspect takes one sandbox id; 'sandboxd ps' lists them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needRoot(cmd); err != nil {
				return err
			}
			list, unanswered := listAll(cmd.Context(), runDir)
			info, err := findSandbox(list, args[0])
			if err != nil {
				if unanswered != nil {
					return unanswered
				}
				return err
			}
			processes, err := readSandbox(info)
			if err != nil {
				return err
			}
			if format == "json" {
				return printJSON(cmd.OutOrStdout(), inspection{info, processes})
			}
			return printInspection(cmd.OutOrStdout(), inspection{info, processes})
		},
	}
	addOutput(cmd.Flags(), &format)
	addRunDir(cmd.Flags(), &runDir)
	return cmd
}

// readSandbox reads the processes of a sandbox from the kernel.
func readSandbox(info sandboxInfo) ([]inspect.Process, error) {
	var domains []inspect.Domain
	for _, name := range []string{"runtime", "extension"} {
		if pid, ok := info.Init[name]; ok {
			domains = append(domains, inspect.Domain{Name: name, Init: pid, Cgroup: info.Cgroup})
		}
	}
	processes, err := inspect.Reader{}.Read(domains)
	if processes == nil {
		processes = []inspect.Process{}
	}
	return processes, err
}

// printInspection writes the tables of inspect: what each process is confined to, and
// what its cgroup bounds.
func printInspection(w io.Writer, i inspection) error {
	fmt.Fprintf(w, "sandbox %s of function %s, %s, daemon %s\n\n", i.ID, i.Function, i.State, i.Instance)
	rows := [][]string{{"DOMAIN", "PROCESS", "PID", "INSIDE", "COMMAND", "UID (INSIDE)", "GID (INSIDE)", "OWN NAMESPACES", "CAPABILITIES", "NO_NEW_PRIVS", "SECCOMP", "ROOT"}}
	for _, p := range i.Processes {
		rows = append(rows, []string{
			p.Domain, p.Role, fmt.Sprint(p.PID), fmt.Sprint(p.PIDInside), printable(p.Command),
			fmt.Sprintf("%d (%d)", p.UID.Host, p.UID.Inside), fmt.Sprintf("%d (%d)", p.GID.Host, p.GID.Inside),
			ownNamespaces(p), p.Capabilities.Union().String(), yesNo(p.NoNewPrivs), p.Seccomp, rootMode(p),
		})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	fmt.Fprintln(w)
	rows = [][]string{{"CGROUP", "MEMORY", "SWAP", "CPUS", "PIDS", "FROZEN"}}
	seen := map[string]bool{}
	for _, p := range i.Processes {
		if seen[p.Cgroup.Path] {
			continue
		}
		seen[p.Cgroup.Path] = true
		rows = append(rows, cgroupRow(p.Cgroup))
	}
	return table(w, rows)
}

func cgroupRow(c inspect.Cgroup) []string {
	row := []string{c.Path, "no limit", "no limit", "no limit", "no limit", yesNo(c.Frozen)}
	if c.MemoryBytes > 0 {
		row[1] = mebibytes(c.MemoryBytes)
	}
	switch {
	case c.MemoryBytes > 0 && c.MemoryAndSwapBytes == c.MemoryBytes:
		row[2] = "off"
	case c.MemoryAndSwapBytes > 0:
		row[2] = mebibytes(c.MemoryAndSwapBytes - c.MemoryBytes)
	}
	if c.CPUs > 0 {
		row[3] = fmt.Sprintf("%.3f", c.CPUs)
	}
	if c.PIDs > 0 {
		row[4] = fmt.Sprint(c.PIDs)
	}
	return row
}

// ownNamespaces lists the namespaces that are not the host's, and says which are.
func ownNamespaces(p inspect.Process) string {
	var own, shared []string
	for _, n := range p.Namespaces {
		if n.Own {
			own = append(own, n.Kind)
		} else {
			shared = append(shared, n.Kind)
		}
	}
	s := strings.Join(own, ",")
	if len(shared) > 0 {
		s += " (the host's: " + strings.Join(shared, ",") + ")"
	}
	return s
}

func rootMode(p inspect.Process) string {
	if p.RootReadOnly {
		return "read-only"
	}
	return "writable"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// printable keeps a name that a process chose from writing to the terminal as it likes.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
}
