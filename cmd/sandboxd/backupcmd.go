package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/logging"
)

// addIDBase defines --id-base for commands that run unprivileged processes.
func addIDBase(f *pflag.FlagSet, base *int) {
	*base = subid.DefaultIDBase
	f.Var(cli.Int(base, 0, 1<<32-1, ""), "id-base", "first host id for the process that reads the backup, a multiple of 65536")
}

// place returns where a command runs unprivileged processes.
func place(runDir string, idBase int, stderr io.Writer) daemon.Place {
	return daemon.Place{RunDir: runDir, IDBase: uint32(idBase), Log: logging.New(stderr, "warn", false)}
}

func backupCommand() *cobra.Command {
	var d daemonFlags
	var idBase int
	var hostKey bool
	cmd := &cobra.Command{
		Use:   "backup FILE|DIR",
		Short: "Back up the functions of a running 'sandboxd serve'",
		Long: `backup writes all that a running 'sandboxd serve' knows to one file: functions with their
code, and access keys. Functions are invoked and changed meanwhile; the backup has them as
they were at its beginning. In a folder, the file's name has the time.

The file has its name only once it is on the disk and was read again and checked. What is
secret in it is encrypted with the host key, which is not in it: keep a copy of that file
elsewhere. With --with-host-key the backup has it too, and whoever gets the file can read the
secrets in it.

'sandboxd restore' makes a state folder of a backup. Without a running daemon, copy the whole
--state-dir instead, with its owners, as by cp -a.

Exit codes: 0 success; 2 an error, such as a full disk or a damaged store.`,
		Example: `  sudo sandboxd backup /srv/backups
  sudo sandboxd backup --with-host-key /media/safe/sandboxd.backup`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return errors.New("backup takes one FILE or DIR; see 'sandboxd backup --help'")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needRoot(cmd); err != nil {
				return err
			}
			if err := daemon.Sealed(cmd.Context()); err != nil {
				return err
			}
			o, err := d.find(cmd.Context())
			if err != nil {
				return err
			}
			progress, done := progressOn(cmd.ErrOrStderr())
			path, a, err := daemon.Backup{Place: place(d.runDir, idBase, cmd.ErrOrStderr()), Path: args[0], HostKey: hostKey, Progress: progress}.Make(cmd.Context(), o)
			done()
			if err != nil {
				return err
			}
			with := "It needs the host key " + cli.Printable(strings.Join(a.Note.HostKeys, " ")) + ", which is not in it."
			if a.Note.Text != "" {
				with = "It has the host key: keep it as safe as that."
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d records, and %d files of code with %s. %s\n", path, a.Rows, a.Blobs, cli.Mebibytes(int64(a.BlobBytes)), with)
			return err
		},
	}
	cli.Switch(cmd.Flags(), &hostKey, "with-host-key", "put the host key into the backup")
	d.add(cmd.Flags())
	addIDBase(cmd.Flags(), &idBase)
	return cmd
}

// progressEvery is how often a terminal shows how far a command is.
const progressEvery = 200 * time.Millisecond

// progressOn returns a function that shows the number of bytes on a terminal, and one that
// removes it. On anything else it shows nothing.
func progressOn(w io.Writer) (progress func(int64), done func()) {
	f, ok := w.(*os.File)
	if !ok || !daemon.IsTerminal(f) {
		return nil, func() {}
	}
	var next time.Time
	return func(n int64) {
		if now := time.Now(); now.After(next) {
			next = now.Add(progressEvery)
			fmt.Fprintf(w, "\r%s", cli.Mebibytes(n))
		}
	}, func() { fmt.Fprint(w, "\r\033[K") }
}

func restoreCommand() *cobra.Command {
	o := newOptions()
	var store storeOptions
	var hostKey string
	var idBase, freeMB int
	freeMB = newServeOptions().freeMB
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a state folder of a backup",
		Long: `restore makes the --state-dir of a 'sandboxd serve' of a backup, on the same host or on
another one. The folder must be empty, or have only a host.key. All of the backup is checked
before anything is made, and the folder can be used only once it is whole and on the disk; a
restore that was cut short is begun again by the same command.

The secrets in a backup are encrypted with the host key of the host that made it. It is taken
from the backup, if that was made --with-host-key; otherwise copy the file host.key to
--state-dir, before or after.

With --store the store is restored in a PostgreSQL database, which must have none yet, and
only the code is in the folder.

Exit codes: 0 success; 2 an error, such as a damaged backup.`,
		Example: `  sudo sandboxd restore /srv/backups/sandboxd-20261201T030000Z.backup --state-dir /var/lib/sandboxd`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return errors.New("restore takes one FILE; see 'sandboxd restore --help'")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.stateDir == "" || o.runDir == "" {
				return errors.New("--state-dir and --run-dir must not be empty")
			}
			if err := store.complete(); err != nil {
				return err
			}
			if err := needRoot(cmd); err != nil {
				return err
			}
			if err := daemon.Sealed(cmd.Context()); err != nil {
				return err
			}
			server, err := store.server()
			if err != nil {
				return err
			}
			done, err := daemon.Restore{
				Place: place(o.runDir, idBase, cmd.ErrOrStderr()), StateDir: o.stateDir, HostKey: hostKey, Store: server, FreeBytes: int64(freeMB) << 20,
			}.From(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printRestored(cmd.OutOrStdout(), o.stateDir, done)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.stateDir, "state-dir", o.stateDir, "`DIR` to make, that of 'sandboxd serve'")
	f.StringVar(&hostKey, "host-key", "", "`FILE` with the host key, if it is not to be in --state-dir")
	f.Var(cli.IntOrZero(&freeMB, 1, 1<<30, " MB"), "free-space", "disk space in MB that stays free")
	store.add(f)
	addRunDir(f, &o.runDir)
	addIDBase(f, &idBase)
	return cmd
}

// printRestored says what was restored, and what is missing.
func printRestored(w io.Writer, stateDir string, r daemon.Restored) error {
	_, err := fmt.Fprintf(w, "%s has the backup of %s: %d records, and %d files of code with %s\n", stateDir, r.Made.Format(time.RFC3339), r.Rows, r.Blobs, cli.Mebibytes(int64(r.BlobBytes)))
	if err == nil && len(r.Missing) > 0 {
		_, err = fmt.Fprintf(w, "The secrets in it need the host key %s: copy it to %s from the host that made the backup before you start 'sandboxd serve'\n",
			cli.Printable(strings.Join(r.Missing, " ")), r.HostKey)
	}
	return err
}
