package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

// Sealed has this process, which must be root, run from a sealed copy of its binary, as a
// confined child can execute no other. Like [Become] it executes the program again.
func Sealed(ctx context.Context) error {
	if runc.IsSealed() {
		return nil
	}
	signal.Reset(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP) // see Become
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("interrupted: %w", err)
	}
	return runc.SealSelf()
}

// Place is where a command runs unprivileged processes.
type Place struct {
	RunDir string         // for its instance folder
	IDBase uint32         // first host id
	Log    *logrus.Logger // gets warnings
}

// user is an id that nothing else on this host has.
type user struct {
	uid      uint32
	leases   *subid.Leases
	instance *instance.Instance
}

// newUser leases an id. It removes what a command has left that was killed.
func (p Place) newUser(ctx context.Context) (u *user, err error) {
	u = &user{}
	defer func() {
		if err != nil && u.instance != nil {
			err = errors.Join(err, u.instance.Close())
		}
	}()
	ids, err := subid.NewPool(p.IDBase, "/")
	if err != nil {
		return nil, err
	}
	if u.leases, err = subid.OpenLeases(subid.DefaultLeaseDir, ids); err != nil {
		return nil, err
	}
	if _, err := instance.Reconcile(ctx, p.RunDir, u.leases, onlyProcess); err != nil {
		p.Log.WithError(err).Debug("leftovers of dead processes stay")
	}
	if u.instance, err = instance.Acquire(p.RunDir); err != nil {
		return nil, err
	}
	u.uid, err = u.leases.Acquire(u.instance.Dir())
	return u, err
}

// onlyProcess lets instance.Reconcile remove what commands leave, and not what daemons do.
func onlyProcess(_ context.Context, dead instance.Info) error {
	if _, err := os.Lstat(filepath.Join(dead.Dir, cgroupRecord)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(errors.New("it may have sandboxes, which the next daemon removes"), err)
	}
	return nil
}

// close ends the lease. No process may run as the user any more.
func (u *user) close() error { return errors.Join(u.leases.Release(u.uid), u.instance.Close()) }

// backupProcess checks or restores a backup.
type backupProcess struct {
	backup *os.File // open for reading, at any position
	job    message.BackupJob
	folder *os.File                                // that of the job, if it has one
	dial   func(context.Context) (*os.File, error) // connects to the job's database, if it has one
}

// run runs the process as the user uid, and returns what it says. It is killed when ctx ends.
func (b *backupProcess) run(ctx context.Context, uid uint32, log *logrus.Logger) (answer message.BackupAnswer, err error) {
	if _, err := b.backup.Seek(0, io.SeekStart); err != nil {
		return answer, err
	}
	job, err := b.job.File()
	if err != nil {
		return answer, err
	}
	defer job.Close()
	ours, line, err := registry.Pair()
	if err != nil {
		return answer, err
	}
	defer line.Close()
	none := errors.ErrUnsupported
	server, err := registry.NewServer(ours, registry.Config{
		Register: func(context.Context, []byte, []*os.File) (p function.Program, missing uint32, err error) {
			return p, 0, none
		},
		Forget: func(uint64) error { return none }, Connect: func(context.Context) (*os.File, error) { return nil, none },
		DialStore: b.dial,
	})
	if err != nil {
		return answer, err
	}
	said, failed := capped{most: message.MaxBackupAnswer}, capped{most: maxCrash}
	c := exec.CommandContext(ctx, "/proc/self/exe")
	c.Args, c.Env, c.Dir = []string{message.BackupCommand}, workerEnv(), "/"
	c.Stdin, c.Stdout, c.Stderr = b.backup, &said, &failed
	c.ExtraFiles = []*os.File{line, job} // from message.LineFD on
	var needs confine.Needs
	if b.folder != nil {
		needs.Folders, needs.Links = []*os.File{b.folder}, true
	}
	ended, err := startConfined(log, c, uid, needs)
	if err != nil {
		return answer, errors.Join(err, server.Close())
	}
	line.Close() // only the process has this end now: the server sees when it exits
	server.Require(func() error { return confine.Check(c.Process.Pid) })
	err = server.Serve(func() { _ = c.Process.Kill() }) // it has closed the line, which it does by exiting only
	status := <-ended
	switch {
	case ctx.Err() != nil:
		return answer, fmt.Errorf("interrupted: %w", ctx.Err())
	case err != nil:
		return answer, err
	}
	if err := json.Unmarshal(said.b, &answer); err != nil {
		return answer, fmt.Errorf("the process that reads the backup has failed: %w: %q", errors.Join(status, err), bytes.TrimSpace(failed.b))
	}
	if answer.Error != "" {
		return answer, errors.New(answer.Error)
	}
	return answer, status
}

// maxCrash is how much is kept of what the process says when it crashes.
const maxCrash = 4 << 10

// capped keeps the first most bytes that are written to it, and discards the rest.
type capped struct {
	b    []byte
	most int
}

func (w *capped) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), w.most-len(w.b))]...)
	return len(p), nil
}
