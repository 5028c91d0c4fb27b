package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// pruneOptions holds the flags of `prune`.
type pruneOptions struct {
	stateDir  string
	all       bool
	olderThan time.Duration // least time since the last use; 0 is any
	dryRun    bool
	format    string
}

func pruneCommand() *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove extracted packages and images that nothing uses",
		Long: `prune removes the extracted packages, images and templates of /tmp that no daemon
uses from --state-dir, at once. Running daemons are not affected. A daemon that needs a
removed entry later creates it again.

Daemons also remove unused entries by themselves. The settings unused-age and
unused-size of the configuration file say when.

Exit codes: 0 success; 2 an error, such as an entry that could not be removed.`,
		Example: `  sudo sandboxd prune --dry-run
  sudo sandboxd prune
  sudo sandboxd prune --older-than 24h --output json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.all && cmd.Flags().Changed("older-than") {
				return errors.New("--all and --older-than cannot be used together: leave one of them out")
			}
			if err := needRoot(cmd); err != nil {
				return err
			}
			return o.prune(cmd.Context(), cmd.OutOrStdout(), cmd.Flags().Changed("state-dir"))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.stateDir, "state-dir", defaultStateDir, "`DIR` that the daemons use as --state-dir")
	cli.Switch(f, &o.all, "all", "remove every unused entry, however recently it was used; this is the default")
	f.Var(cli.Duration(&o.olderThan, 0, 10*365*24*time.Hour), "older-than", "keep entries that were used within this time")
	cli.Switch(f, &o.dryRun, "dry-run", "print what would be removed, and remove nothing")
	cli.AddOutput(f, &o.format)
	return cmd
}

// prune removes unused entries and prints on w what it removed. named reports whether the
// operator has named the folder, which then must exist.
func (o *pruneOptions) prune(ctx context.Context, w io.Writer, named bool) error {
	if _, err := os.Stat(o.stateDir); err != nil && named {
		return fmt.Errorf("--state-dir: %w; give the --state-dir of 'sandboxd run'", err)
	}
	prune := store.Prune
	if o.dryRun {
		prune = store.Plan
	}
	r, err := prune(ctx, daemon.PackagesDir(o.stateDir), store.Retention{Age: o.olderThan, Bytes: store.NoBytes})
	out := newPruned(r, o.dryRun)
	if o.format == "json" {
		return errors.Join(cli.PrintJSON(w, out), err)
	}
	return errors.Join(out.print(w, time.Now()), err)
}

// pruned is the JSON output of prune.
type pruned struct {
	DryRun     bool         `json:"dryRun"`     // nothing was removed; Removed lists what would be
	FreedBytes int64        `json:"freedBytes"` // disk space
	Leftovers  int          `json:"leftovers"`  // removed folders of processes that died while they created or removed an entry
	Removed    []prunedItem `json:"removed"`
	Unused     []prunedItem `json:"unused"` // kept although nothing uses them
	InUse      []prunedItem `json:"inUse"`
}

// prunedItem is one package or image.
type prunedItem struct {
	Kind     string    `json:"kind"` // zip, image, tmp, or unknown
	Digest   string    `json:"digest"`
	From     string    `json:"from"` // its source; "" if unknown
	Bytes    int64     `json:"bytes"`
	LastUsed time.Time `json:"lastUsed"`
}

func newPruned(r store.Result, dryRun bool) pruned {
	list := func(items []store.Item) []prunedItem {
		out := make([]prunedItem, 0, len(items)) // not nil: JSON shows an empty list
		for _, it := range items {
			out = append(out, prunedItem{Kind: cmp.Or(string(it.Kind), "unknown"), Digest: it.Digest, From: it.From, Bytes: it.Bytes, LastUsed: it.LastUsed})
		}
		return out
	}
	return pruned{DryRun: dryRun, FreedBytes: store.Bytes(r.Removed), Leftovers: r.Leftovers,
		Removed: list(r.Removed), Unused: list(r.Unused), InUse: list(r.InUse)}
}

// print writes a table of the entries, and their totals below it.
func (p *pruned) print(w io.Writer, now time.Time) error {
	removed, freed := "removed", "freed"
	if p.DryRun {
		removed, freed = "would be removed", "would be freed"
	}
	rows := [][]string{{"", "KIND", "DIGEST", "MADE FROM", "SIZE", "LAST USED"}}
	for _, group := range []struct {
		what  string
		items []prunedItem
	}{{removed, p.Removed}, {"stays", p.Unused}, {"in use", p.InUse}} {
		for _, it := range group.items {
			used := now.Sub(it.LastUsed).Truncate(time.Second).String() + " ago"
			if group.what == "in use" {
				used = "now"
			}
			rows = append(rows, []string{group.what, it.Kind, it.Digest[:shortDigest], cmp.Or(cli.Printable(it.From), "-"), cli.Mebibytes(it.Bytes), used})
		}
	}
	if len(rows) > 1 {
		if err := cli.Table(w, rows); err != nil {
			return err
		}
	}
	if p.Leftovers > 0 {
		fmt.Fprintf(w, "leftovers of killed processes that were removed: %d\n", p.Leftovers)
	}
	_, err := fmt.Fprintf(w, "%s %s; %s in use, %s unused stay\n", cli.Mebibytes(p.FreedBytes), freed, sum(p.InUse), sum(p.Unused))
	return err
}

// shortDigest is the number of digits of a digest that a table shows.
const shortDigest = 12

// sum returns the disk space of all items, as text.
func sum(items []prunedItem) string {
	var n int64
	for _, it := range items {
		n += it.Bytes
	}
	return cli.Mebibytes(n)
}
