package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/host/inspect"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

// inspection is what inspect prints as JSON.
type inspection struct {
	admin.Sandbox
	Processes []inspect.Process `json:"processes"`
}

func inspectCommand() *cobra.Command {
	var format, runDir string
	var posture bool
	cmd := &cobra.Command{
		Use:   "inspect ID",
		Short: "Show the isolation in force for every process of a sandbox",
		Long: `inspect reads from the kernel what holds for every process of the sandbox whose id
is or begins with ID: namespaces, cgroup and limits, ids, capabilities, no_new_privs,
the root file system, files in memory (memfd) that are open, and seccomp, with the name
of the profile whose filter is in force, or "another" if this sandboxd does not have it.
Frozen sandboxes are no exception.

With --posture it compares this, and more, with what every process of a sandbox must
be confined to, and says of each expectation whether it is met.

Exit codes: 0 success; 1 an expectation of --posture is not met; 2 the command line
or the host is at fault, or there is no such sandbox.`,
		Example: `  sudo sandboxd inspect function-3f2a11
  sudo sandboxd inspect --posture function-3f2a11
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
			list, unanswered := admin.List(cmd.Context(), runDir)
			info, err := admin.Find(list, args[0])
			if err != nil {
				if unanswered != nil {
					return unanswered
				}
				return err
			}
			if posture {
				return inspectPosture(cmd.OutOrStdout(), info, format)
			}
			profiles, err := seccompProfiles()
			if err != nil {
				return err
			}
			processes, err := inspect.Reader{Profiles: profiles}.Read(domainsOf(info))
			if err != nil {
				return err
			}
			if processes == nil {
				processes = []inspect.Process{}
			}
			if format == "json" {
				return cli.PrintJSON(cmd.OutOrStdout(), inspection{info, processes})
			}
			return printInspection(cmd.OutOrStdout(), inspection{info, processes})
		},
	}
	cli.AddOutput(cmd.Flags(), &format)
	cli.Switch(cmd.Flags(), &posture, "posture", "compare with what must be in force, and fail at a difference")
	addRunDir(cmd.Flags(), &runDir)
	return cmd
}

// seccompProfiles are the filters that this sandboxd would put in force.
func seccompProfiles() (inspect.Profiles, error) {
	profiles := inspect.Profiles{}
	for _, name := range isolation.Profiles() {
		filter, err := runc.Filter(name)
		if err != nil {
			return nil, err
		}
		profiles[name] = filter
	}
	return profiles, nil
}

// domainsOf says where the processes of a sandbox are.
func domainsOf(info admin.Sandbox) []inspect.Domain {
	var domains []inspect.Domain
	for _, name := range []string{"runtime", "extension"} {
		if pid, ok := info.Init[name]; ok {
			domains = append(domains, inspect.Domain{Name: name, Init: pid, Cgroup: info.Cgroup})
		}
	}
	return domains
}

// postureReport is what inspect --posture prints as JSON.
type postureReport struct {
	ID      string            `json:"id"`
	Met     bool              `json:"met"`
	Posture []inspect.Finding `json:"posture"`
}

// inspectPosture compares a sandbox with the expected posture. A sandbox without a
// process is an error: there is nothing to tell of it.
func inspectPosture(w io.Writer, info admin.Sandbox, format string) error {
	profiles, err := seccompProfiles()
	if err != nil {
		return err
	}
	findings, err := inspect.Reader{Profiles: profiles}.Posture(domainsOf(info))
	if err != nil {
		return err
	}
	if len(findings) == 0 {
		return fmt.Errorf("sandbox %s has ended", info.ID)
	}
	if info.Network.Unsafe {
		findings = inspect.ExemptNetwork(findings)
	}
	r := postureReport{info.ID, true, findings}
	for _, f := range findings {
		r.Met = r.Met && f.Met
	}
	if format == "json" {
		err = cli.PrintJSON(w, r)
	} else {
		err = printPosture(w, r)
	}
	if err == nil && !r.Met {
		err = &exit.Error{Code: exit.Function, Err: fmt.Errorf("sandbox %s is not confined as it must be", info.ID)}
	}
	return err
}

// printPosture writes a row for each expectation and what was found: processes of
// which the same was found share one.
func printPosture(w io.Writer, r postureReport) error {
	rows := [][]string{{"EXPECTATION", "DOMAIN", "PROCESS", "MET", "FOUND"}}
	for _, f := range r.Posture {
		found := cli.Printable(f.Got)
		if !f.Met {
			found += " (want " + f.Want + ")"
		}
		row := []string{f.Check, f.Domain, f.Role, cli.YesNo(f.Met), found}
		if !slices.ContainsFunc(rows, func(other []string) bool { return slices.Equal(other, row) }) {
			rows = append(rows, row)
		}
	}
	return cli.Table(w, rows)
}

// printInspection writes the tables of inspect: what each process is confined to, and
// what its cgroup bounds.
func printInspection(w io.Writer, i inspection) error {
	fmt.Fprintf(w, "sandbox %s of function %s, %s, daemon %s\nnetwork: %v\n\n", cli.Printable(i.ID), cli.Printable(i.Function), cli.Printable(i.State), cli.Printable(i.Instance), i.Network)
	rows := [][]string{{"DOMAIN", "PROCESS", "PID", "INSIDE", "COMMAND", "UID (INSIDE)", "GID (INSIDE)", "OWN NAMESPACES", "CAPABILITIES", "NO_NEW_PRIVS", "SECCOMP", "ROOT"}}
	for _, p := range i.Processes {
		rows = append(rows, []string{
			p.Domain, p.Role, fmt.Sprint(p.PID), fmt.Sprint(p.PIDInside), cli.Printable(p.Command),
			fmt.Sprintf("%d (%d)", p.UID.Host, p.UID.Inside), fmt.Sprintf("%d (%d)", p.GID.Host, p.GID.Inside),
			ownNamespaces(p), p.Capabilities.Union().String(), cli.YesNo(p.NoNewPrivs), seccompMode(p), rootMode(p),
		})
	}
	if err := cli.Table(w, rows); err != nil {
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
	if err := cli.Table(w, rows); err != nil {
		return err
	}
	rows = [][]string{{"DOMAIN", "PID", "DESCRIPTOR", "FILE IN MEMORY", "MADE IN THE SANDBOX"}}
	for _, p := range i.Processes {
		for _, f := range p.MemoryFiles {
			rows = append(rows, []string{p.Domain, fmt.Sprint(p.PID), fmt.Sprint(f.FD), cli.Printable(f.Name), cli.YesNo(f.Own)})
		}
	}
	if len(rows) == 1 {
		return nil
	}
	fmt.Fprintln(w)
	return cli.Table(w, rows)
}

func seccompMode(p inspect.Process) string {
	if p.Profile == "" {
		return p.Seccomp
	}
	return p.Seccomp + ", profile " + p.Profile
}

func cgroupRow(c inspect.Cgroup) []string {
	row := []string{c.Path, "no limit", "no limit", "no limit", "no limit", cli.YesNo(c.Frozen)}
	if c.MemoryBytes > 0 {
		row[1] = cli.Mebibytes(c.MemoryBytes)
	}
	switch {
	case c.MemoryBytes > 0 && c.MemoryAndSwapBytes == c.MemoryBytes:
		row[2] = "off"
	case c.MemoryAndSwapBytes > 0:
		row[2] = cli.Mebibytes(c.MemoryAndSwapBytes - c.MemoryBytes)
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
