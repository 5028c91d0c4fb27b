// Package instance gives every running daemon an identity on its host: a folder
// with a lock that lives exactly as long as the daemon does. It is how several daemons
// share a host, and how a new one finds what a killed one left behind.
//
// Everything here survives `kill -9` at any step: the kernel drops the lock with
// the process, and the next daemon that looks removes the folder and the leases of
// host ids ([Reconcile], package subid).
//
// All functions are safe for concurrent use by any number of daemons.
package instance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/runfolder"
)

// Unix sockets in an instance folder (package daemon/admin).
const (
	controlName = "control.sock"    // the worker's
	factName    = "supervisor.sock" // the supervisor's
	adminName   = "admin.sock"      // the control process's
	hostKeyName = "host-key.sock"   // the supervisor's
)

// idPattern is the form of an instance id, and so of an instance folder's name.
var idPattern = regexp.MustCompile(`^[0-9a-f]{8}$`)

// Instance is the identity of one live daemon. It owns the instance folder and the
// lock on it, and gives both up in Close.
type Instance struct {
	id   string
	dir  string
	lock *os.File // flock'ed while the daemon lives
}

// Info is what can be seen of an instance from outside.
type Info struct {
	ID    string // 8 hexadecimal digits
	Dir   string // its folder
	Alive bool   // a process holds its lock: the daemon itself, or one that is removing its leftovers
}

// ControlSocket is the path at which the instance's worker answers commands. The file need
// not exist.
func (i Info) ControlSocket() string { return filepath.Join(i.Dir, controlName) }

// FactSocket is the path at which the instance's supervisor answers commands. The file need
// not exist.
func (i Info) FactSocket() string { return filepath.Join(i.Dir, factName) }

// AdminSocket is the path at which the instance's control process answers operators. The file
// need not exist.
func (i Info) AdminSocket() string { return filepath.Join(i.Dir, adminName) }

// HostKeySocket is the path at which the instance's supervisor is told that the host key was
// rotated. The file need not exist.
func (i Info) HostKeySocket() string { return filepath.Join(i.Dir, hostKeyName) }

// Candidates returns the instances under runDir without asking whether they are alive, which
// takes the right to lock them. Alive is false.
func Candidates(runDir string) ([]Info, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var infos []Info
	for _, e := range entries {
		if e.IsDir() && idPattern.MatchString(e.Name()) {
			infos = append(infos, Info{ID: e.Name(), Dir: filepath.Join(runDir, e.Name())})
		}
	}
	return infos, nil
}

// Acquire makes a new instance under runDir, which is made too if it is missing.
// Others may pass through the folders and not list them (mode 0711): libcontainer
// resolves the paths of a sandbox's root as the sandbox's user. The lock is held until Close or the end of the
// process, whichever comes first.
func Acquire(runDir string) (*Instance, error) {
	runDir, err := runfolder.Prepare(runDir)
	if err != nil {
		return nil, err
	}
	common, err := runfolder.Lock(runDir, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer common.Close()

	id, err := newID()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(runDir, id)
	if err := os.Mkdir(dir, runfolder.Mode); err != nil {
		return nil, err
	}
	lock, err := runfolder.Lock(dir, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		if err = os.Chmod(dir, runfolder.Mode); err != nil { // whatever the umask is
			lock.Close()
		}
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return &Instance{id: id, dir: dir, lock: lock}, nil
}

// ID returns the instance's id, 8 hexadecimal digits chosen at random.
func (i *Instance) ID() string { return i.id }

// Dir returns the instance's folder. What is put there is removed by Close.
func (i *Instance) Dir() string { return i.dir }

// Info is what can be seen of the instance from outside.
func (i *Instance) Info() Info { return Info{ID: i.id, Dir: i.dir, Alive: true} }

// Close removes the folder with all that is in it and gives up the lock. A daemon
// whose sandboxes are not all gone calls Abandon instead.
func (i *Instance) Close() error {
	return errors.Join(removeDir(i.dir), i.lock.Close())
}

// Abandon gives up the lock and leaves the folder and the leases, so that the next
// daemon on this host finds them and removes what could not be removed now.
func (i *Instance) Abandon() error { return i.lock.Close() }

// List returns the instances under runDir in the order of their ids. A run folder
// that does not exist has none.
func List(runDir string) ([]Info, error) {
	common, err := openCommon(runDir)
	if common == nil {
		return nil, err
	}
	defer common.Close()
	return list(runDir)
}

// list is List for callers that hold the common lock.
func list(runDir string) ([]Info, error) {
	entries, err := os.ReadDir(runDir)
	if err != nil {
		return nil, err
	}
	var infos []Info
	for _, e := range entries {
		if !e.IsDir() || !idPattern.MatchString(e.Name()) {
			continue
		}
		dir := filepath.Join(runDir, e.Name())
		lock, err := runfolder.Lock(dir, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			lock.Close()
		case errors.Is(err, fs.ErrNotExist):
			continue // closed since the folder was read
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, err
		}
		infos = append(infos, Info{ID: e.Name(), Dir: dir, Alive: err != nil})
	}
	return infos, nil
}

// Reconcile removes the dead instances under runDir: for each it calls clean, which
// removes what the instance has left elsewhere (cgroups, mounts, processes), then
// its leases in leases, then its folder. A dead instance is locked meanwhile, so two
// daemons that start together share the work and never do it twice. It returns the
// ids of those that are gone; an instance whose clean fails is kept for the next
// time, its leases too, and its error is part of the one returned.
func Reconcile(ctx context.Context, runDir string, leases *subid.Leases, clean func(context.Context, Info) error) (removed []string, err error) {
	dead, err := claimDead(runDir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, d := range dead {
		if err := d.remove(ctx, leases, clean); err != nil {
			errs = append(errs, fmt.Errorf("leftovers of dead instance %s: %w", d.ID, err))
			continue
		}
		removed = append(removed, d.ID)
	}
	return removed, errors.Join(errs...)
}

// claimed is a dead instance whose lock is held by this process.
type claimed struct {
	Info
	lock *os.File
}

// claimDead locks every dead instance under runDir.
func claimDead(runDir string) ([]claimed, error) {
	common, err := openCommon(runDir)
	if common == nil {
		return nil, err
	}
	defer common.Close()
	infos, err := list(runDir)
	if err != nil {
		return nil, err
	}
	var dead []claimed
	for _, info := range infos {
		if info.Alive {
			continue
		}
		lock, err := runfolder.Lock(info.Dir, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue // its last owner came back to life or removed it: not ours
		}
		if err != nil {
			for _, d := range dead {
				d.lock.Close()
			}
			return nil, err
		}
		dead = append(dead, claimed{info, lock})
	}
	return dead, nil
}

// remove takes away all that is left of a dead instance, its folder last.
func (d claimed) remove(ctx context.Context, leases *subid.Leases, clean func(context.Context, Info) error) error {
	defer d.lock.Close()
	if err := clean(ctx, d.Info); err != nil {
		return err
	}
	if err := leases.ReleaseAll(d.Dir); err != nil {
		return err
	}
	return removeDir(d.Dir)
}

// removeDir removes an instance's folder. The lock file goes last, and under the
// common lock, so that nobody makes another meanwhile.
func removeDir(dir string) error {
	common, err := openCommon(filepath.Dir(dir))
	if common == nil {
		return err
	}
	defer common.Close()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == runfolder.LockName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return nil
}

// openCommon takes the lock of the run folder; nil without error means there is no
// such folder.
func openCommon(runDir string) (*os.File, error) {
	if _, err := os.Stat(runDir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	return runfolder.Lock(runDir, unix.LOCK_EX)
}

// newID makes a random instance id.
func newID() (string, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}
