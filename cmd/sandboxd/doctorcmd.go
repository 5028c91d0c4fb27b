package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/host/doctor"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

func doctorCommand() *cobra.Command {
	var format string
	idBase := subid.DefaultIDBase
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what this host offers and lacks",
		Long: `doctor checks whether this host has what sandboxes need, and prints a fix for what is
missing. It tries a feature where that is cheap. FAIL means that sandboxes cannot run;
WARN means that they run with a restriction.

Exit codes: 0 no check failed; 1 a check failed; 2 any other error, such as an invalid
command line.`,
		Example: `  sudo sandboxd doctor
  sudo sandboxd doctor --output json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, err := runc.DetectHost()
			if err != nil {
				return err
			}
			findings := doctor.Examine(cmd.Context(), daemon.DoctorHost(host, uint32(idBase)))
			if format == "json" {
				err = cli.PrintJSON(cmd.OutOrStdout(), findings)
			} else {
				rows := [][]string{{"STATUS", "CHECK", "SEEN", "FIX"}}
				for _, f := range findings {
					rows = append(rows, []string{string(f.Status), f.Check, f.Seen, f.Fix})
				}
				err = cli.Table(cmd.OutOrStdout(), rows)
			}
			if err != nil {
				return err
			}
			missing := 0
			for _, f := range findings {
				if f.Status == doctor.Fail {
					missing++
				}
			}
			if missing > 0 {
				return &exit.Error{Code: exit.Function, Err: fmt.Errorf("%d checks failed: sandboxes cannot run on this host; apply the fixes above", missing)}
			}
			return nil
		},
	}
	cli.AddOutput(cmd.Flags(), &format)
	cmd.Flags().Var(cli.Int(&idBase, 0, 1<<32-1, ""), "id-base", "first host id for sandboxes, a multiple of 65536")
	return cmd
}
