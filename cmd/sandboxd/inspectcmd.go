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

// inspection is the JSON output of inspect.
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
		Long: `inspect shows the isolation of every process of one sandbox, as the kernel reports it:
namespaces, cgroup and limits, ids, capabilities, no_new_privs, the root file system,
open files in memory (memfd), and seccomp. ID is the id of the sandbox or the beginning
of it. The column SECCOMP names the profile whose filter is in force, or "another" if
this version of sandboxd does not have that filter. Frozen sandboxes can be inspected too.

With --posture, inspect compares this and more with the required confinement of a
sandbox, and prints for each expectation whether it is met.

Exit codes: 0 success; 1 an expectation of --posture is not met; 2 any other
error, such as an invalid command line or an unknown sandbox.`,
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
	cli.Switch(cmd.Flags(), &posture, "posture", "compare with the required confinement, and fail if they differ")
	addRunDir(cmd.Flags(), &runDir)
	return cmd
}

// hostSysinfo follows the name of a profile in force if sysinfo(2) tells about the host.
const hostSysinfo = ", sysinfo of the host"

// seccompProfiles returns the filters that this version of sandboxd installs, by profile.
func seccompProfiles() (inspect.Profiles, error) {
	profiles := inspect.Profiles{}
	for _, name := range isolation.Profiles() {
		for shown, sysinfo := range map[string]bool{name: true, name + hostSysinfo: false} {
			filter, err := runc.Filter(name, sysinfo)
			if err != nil {
				return nil, err
			}
			profiles[shown] = filter
		}
	}
	return profiles, nil
}

// domainsOf returns the domains of a sandbox, in which inspect finds its processes.
func domainsOf(info admin.Sandbox) []inspect.Domain {
	var domains []inspect.Domain
	for _, name := range []string{"runtime", "extension"} {
		if pid, ok := info.Init[name]; ok {
			domains = append(domains, inspect.Domain{Name: name, Init: pid, Cgroup: info.Cgroup})
		}
	}
	return domains
}

// postureReport is the JSON output of inspect --posture.
type postureReport struct {
	ID      string            `json:"id"`
	Met     bool              `json:"met"`
	Posture []inspect.Finding `json:"posture"`
}

// inspectPosture compares a sandbox with the expected posture and prints the result. A
// sandbox without processes is an error.
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

// printPosture writes a row for each expectation and process. Equal rows appear once.
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

// printInspection writes the tables of inspect: processes with their confinement, cgroups
// with their limits, and open files in memory.
func printInspection(w io.Writer, i inspection) error {
	fmt.Fprintf(w, "sandbox %s of function %s, version %s, revision %d, %s, daemon %s\nnetwork: %v\n\n", cli.Printable(i.ID), cli.Printable(i.Function), cli.Printable(i.Version), i.Revision.Number, cli.Printable(i.State), cli.Printable(i.Instance), i.Network)
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

// ownNamespaces lists the namespaces of the sandbox's own, then those shared with the host.
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
