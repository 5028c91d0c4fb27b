package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/seal"
)

// daemonFlags choose the daemon that a command is for.
type daemonFlags struct{ runDir, instance string }

func (d *daemonFlags) add(f *pflag.FlagSet) {
	addRunDir(f, &d.runDir)
	f.StringVar(&d.instance, "instance", "", "`ID` of the daemon, or its beginning, if several run 'sandboxd serve'")
}

func (d *daemonFlags) find(ctx context.Context) (*admin.Operators, error) {
	return admin.Serving(ctx, d.runDir, d.instance)
}

func keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, list and revoke the access keys of a running 'sandboxd serve'",
		Long: `key makes, lists and revokes the access keys with which clients sign their requests to
'sandboxd serve'. It asks the running daemon, on a socket that root and the members of the
group ` + admin.DefaultGroup + ` can open.

Exit codes: 0 success; 2 an error, such as no running daemon.`,
		Example: `  sudo sandboxd key create --invoke 'hello*'
  sudo sandboxd key list
  sudo sandboxd key revoke AKSDXXXXXXXXXXXXXXXX`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(keyCreateCommand(), keyListCommand(), keyRevokeCommand(), keyRotateCommand())
	return cmd
}

func keyCreateCommand() *cobra.Command {
	var d daemonFlags
	var format string
	var invoke []string
	cmd := &cobra.Command{
		Use:   "create [--invoke PATTERN]...",
		Short: "Make an access key, and print its secret, once",
		Long: `create makes an access key and prints it. Nobody can read its secret afterwards.

With --invoke the key may do nothing but invoke the functions whose names match one of the
patterns, in which * stands for any characters and ? for one. Without --invoke it may do
everything.

Exit codes: 0 success; 2 an error.`,
		Example: `  sudo sandboxd key create
  sudo sandboxd key create --invoke 'orders-*' --invoke mail`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := d.find(cmd.Context())
			if err != nil {
				return err
			}
			k, err := o.CreateKey(cmd.Context(), admin.NewKey{Invoke: invoke})
			if err != nil {
				return err
			}
			if format == "json" {
				return cli.PrintJSON(cmd.OutOrStdout(), k)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s\n", cli.Printable(k.ID), cli.Printable(k.Secret))
			return err
		},
	}
	cmd.Flags().StringArrayVar(&invoke, "invoke", nil, "`PATTERN` of names of functions, which are all that the key may invoke; repeatable")
	cli.AddOutput(cmd.Flags(), &format)
	d.add(cmd.Flags())
	return cmd
}

func keyListCommand() *cobra.Command {
	var d daemonFlags
	var format string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the access keys",
		Long: `list lists all access keys, those that were revoked too. USED is the last day, in UTC, on
which a signature of the key was verified.

Exit codes: 0 success; 2 an error.`,
		Example: `  sudo sandboxd key list --output json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := d.find(cmd.Context())
			if err != nil {
				return err
			}
			list, err := o.Keys(cmd.Context())
			if err != nil {
				return err
			}
			if format == "json" {
				return cli.PrintJSON(cmd.OutOrStdout(), list)
			}
			return printKeys(cmd.OutOrStdout(), list)
		},
	}
	cli.AddOutput(cmd.Flags(), &format)
	d.add(cmd.Flags())
	return cmd
}

// printKeys writes the table of key list.
func printKeys(w io.Writer, list []admin.Key) error {
	rows := [][]string{{"KEY", "MAY", "FUNCTIONS", "CREATED", "USED", "REVOKED"}}
	for _, k := range list {
		may := k.Kind
		if may == "admin" {
			may = "do everything"
		}
		revoked := "-"
		if !k.Revoked.IsZero() {
			revoked = k.Revoked.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{
			cli.Printable(k.ID), cli.Printable(may), cmp.Or(cli.Printable(strings.Join(k.Functions, " ")), "-"),
			k.Created.UTC().Format(time.RFC3339), cmp.Or(cli.Printable(k.Used), "-"), revoked,
		})
	}
	return cli.Table(w, rows)
}

func keyRevokeCommand() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke an access key for good",
		Long: `revoke revokes an access key. When it returns, no request that is signed with the key is
accepted any more. Requests that were accepted before come to their end.

Exit codes: 0 success; 2 an error, such as an unknown key.`,
		Example: `  sudo sandboxd key revoke AKSDXXXXXXXXXXXXXXXX`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return errors.New("key revoke takes the id of one access key; 'sandboxd key list' lists them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := d.find(cmd.Context())
			if err != nil {
				return err
			}
			k, err := o.RevokeKey(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "revoked %s\n", cli.Printable(k.ID))
			return err
		},
	}
	d.add(cmd.Flags())
	return cmd
}

func keyRotateCommand() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:   "rotate-host",
		Short: "Replace the host key, which encrypts secrets in the store",
		Long: `rotate-host makes a new host key, has the running daemon encrypt all secrets in its store
again, and then removes the old key from the file. Functions can be invoked meanwhile; the API
answers again after a moment. If the command is cut short, the file has both keys and nothing
is lost: run it again.

A backup that was made earlier needs the old key. Keep a copy of the file as long as such a
backup.

If the host key is a systemd credential, its file can't be changed here: put a new key into
the file that the credential is made from, before the others, restart the service, and remove
the others when the log says that they are not needed any more.

Exit codes: 0 success; 2 an error.`,
		Example: `  sudo sandboxd key rotate-host`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(cmd); err != nil {
				return err
			}
			o, err := d.find(cmd.Context())
			if err != nil {
				return err
			}
			return rotateHostKey(cmd.Context(), cmd.OutOrStdout(), o)
		},
	}
	d.add(cmd.Flags())
	return cmd
}

// rotateHostKey replaces the host key of a daemon. The old key goes last, when nothing is
// encrypted with it any more.
func rotateHostKey(ctx context.Context, w io.Writer, o *admin.Operators) error {
	var file, first string
	err := admin.ChangeHostKey(ctx, o.HostKeySocket(), func(path string) error {
		file = path
		err := seal.Rotate(path)
		if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%w; for a systemd credential see 'sandboxd key rotate-host --help'", err)
		}
		if err != nil {
			return err
		}
		text, err := seal.ReadFile(path)
		if err != nil {
			return err
		}
		ring, err := seal.Parse(text)
		if err != nil {
			return err
		}
		first = ring.IDs()[0]
		failpoint.Pass(failpoint.HostKeyAdded)
		return nil
	})
	switch {
	case err == nil:
		err = confirmHostKey(ctx, o, first)
	case first == "": // nothing was changed
		return err
	}
	if err != nil {
		return fmt.Errorf("the new host key is in %s, but the old one is still needed: %w; then run this command again", file, err)
	}
	failpoint.Pass(failpoint.HostKeyUnneeded)
	if err := seal.Retire(file, first); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s has a new host key, %s; nothing is encrypted with the old one any more\n", file, first)
	return err
}

// confirmHostKey returns nil if a daemon says that all of its secrets are encrypted with the host
// key of that id.
func confirmHostKey(ctx context.Context, o *admin.Operators, id string) error {
	has, err := o.HostKeys(ctx)
	switch {
	case err != nil:
		return err
	case len(has.IDs) == 0 || has.IDs[0] != id:
		return errors.New("the daemon has another host key: it was rotated again meanwhile")
	case has.Error != "":
		return errors.New(has.Error)
	}
	return nil
}
