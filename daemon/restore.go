package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seal"
)

// partialName is the name, below the state folder, of a control folder that is being restored.
const partialName = "control.partial"

// Restore says where a backup goes.
type Restore struct {
	Place
	StateDir  string
	HostKey   string       // file with the host key, "" is one in StateDir
	Store     *StoreServer // the database for the store; nil is SQLite in StateDir
	FreeBytes int64        // of the disk that stay free
}

// Restored says what was restored.
type Restored struct {
	message.BackupAnswer
	HostKey string // path at which 'sandboxd serve' looks for the host key
}

// From restores a backup. The state folder may have a host key and nothing else. It can be used
// once all was checked and is on the disk. This process reads none of the backup.
func (r Restore) From(ctx context.Context, path string) (done Restored, err error) {
	backup, err := os.Open(path)
	if err != nil {
		return done, err
	}
	defer backup.Close()
	state, err := passable(r.StateDir)
	if err != nil {
		return done, err
	}
	lock, err := lockFile(filepath.Join(state, controlLock))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return done, fmt.Errorf("a daemon uses --state-dir %s: choose another folder", state)
	}
	if err != nil {
		return done, err
	}
	defer lock.Close()
	if err := onlyKeys(state); err != nil {
		return done, err
	}
	if done.HostKey = r.HostKey; done.HostKey == "" {
		done.HostKey = filepath.Join(state, hostKeyFile)
	}
	keys, err := seal.ReadFile(done.HostKey)
	if errors.Is(err, fs.ErrNotExist) && r.HostKey == "" {
		keys, err = nil, nil
	}
	if err != nil {
		return done, err
	}
	u, err := r.newUser(ctx)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, u.close()) }()
	if done.BackupAnswer, err = r.fill(ctx, state, u, backup, keys); err != nil {
		return done, fmt.Errorf("restore %s: %w", path, err)
	}
	if keys == nil && done.Note.Text != "" {
		if err := seal.WriteFile(done.HostKey, []byte(done.Note.Text)); err != nil {
			return done, err
		}
	}
	return done, publishFolder(state)
}

// onlyKeys returns an error if the state folder has more than a host key, and what a restore
// leaves that was cut short.
func onlyKeys(state string) error {
	list, err := os.ReadDir(state)
	if err != nil {
		return err
	}
	for _, e := range list {
		if !slices.Contains([]string{controlLock, partialName, hostKeyFile}, e.Name()) {
			return fmt.Errorf("--state-dir %s is not empty (it has %s): choose another folder, or move what is there away", state, e.Name())
		}
	}
	return nil
}

// fill restores the backup in a folder of another name than the control process's.
func (r Restore) fill(ctx context.Context, state string, u *user, backup *os.File, keys []byte) (a message.BackupAnswer, err error) {
	partial := filepath.Join(state, partialName)
	if err := os.RemoveAll(partial); err != nil {
		return a, err
	}
	if err := os.Mkdir(partial, 0o700); err != nil {
		return a, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(partial))
		}
	}()
	folder, err := os.OpenFile(partial, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return a, err
	}
	defer folder.Close()
	if err := folder.Chown(int(u.uid), int(u.uid)); err != nil {
		return a, err
	}
	p := &backupProcess{backup: backup, folder: folder, job: message.BackupJob{Folder: partial, HostKeys: keys, FreeBytes: r.FreeBytes}}
	if r.Store != nil {
		if p.job.Database, err = r.Store.database(); err != nil {
			return a, err
		}
		p.dial = r.Store.dial
	}
	if a, err = p.run(ctx, u.uid, r.Log); err != nil {
		return a, err
	}
	if keys != nil && len(a.Missing) > 0 {
		return a, fmt.Errorf("its secrets need the host key %s, which is not in the file that is here: take the file of the host that made the backup", strings.Join(a.Missing, " "))
	}
	return a, folder.Sync()
}

// publishFolder gives the restored folder its name.
func publishFolder(state string) error {
	dir, err := os.Open(state)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := os.Rename(filepath.Join(state, partialName), filepath.Join(state, controlName)); err != nil {
		return err
	}
	return dir.Sync()
}
