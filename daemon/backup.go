package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/internal/message"
)

// Backup says where a backup goes.
type Backup struct {
	Place
	Path    string // a file, which must not exist, or a folder
	HostKey bool   // the backup has the host key
	// Progress is told how many bytes have come; nil is nobody.
	Progress func(bytes int64)
}

// Make makes a backup of a running daemon, and returns its path and what is in it. The file has
// its name only once it is on the disk and was checked. This process reads none of it.
func (b Backup) Make(ctx context.Context, o *admin.Operators) (path string, a message.BackupAnswer, err error) {
	path = b.Path
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, time.Now().UTC().Format("sandboxd-20060102T150405Z.backup"))
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = errors.New("it exists already: give another name, or remove it")
		}
		return path, a, fmt.Errorf("%s: %w", path, err)
	}
	f, err := newUnnamed(path)
	if err != nil {
		return path, a, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := o.Backup(ctx, &counted{Writer: f, told: b.Progress}, b.HostKey); err != nil {
		return path, a, fmt.Errorf("back up daemon %s: %w", o.ID, err)
	}
	if err := f.Sync(); err != nil {
		return path, a, err
	}
	if a, err = b.check(ctx, f); err != nil {
		return path, a, fmt.Errorf("check what was written to %s: %w", filepath.Dir(path), err)
	}
	return path, a, f.publish()
}

// check reads a backup again, from the disk if that can be.
func (b Backup) check(ctx context.Context, f *unnamed) (a message.BackupAnswer, err error) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd())) // only to be read
	if err != nil {
		return a, err
	}
	defer again.Close()
	u, err := b.newUser(ctx)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, u.close()) }()
	return (&backupProcess{backup: again}).run(ctx, u.uid, b.Log)
}

// counted tells how much was written.
type counted struct {
	io.Writer
	n    int64
	told func(int64)
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	if c.n += int64(n); c.told != nil {
		c.told(c.n)
	}
	return n, err
}

// unnamed is a file that gets its name when it is whole. Without the name it goes with its
// process; only where the file system has no such files does it have a hidden one, which a
// killed process leaves.
type unnamed struct {
	*os.File
	dir    *os.File
	path   string
	hidden string // "" if it has no name
}

// newUnnamed makes a file that will have that path, of mode 0600.
func newUnnamed(path string) (*unnamed, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	u := &unnamed{dir: dir, path: path}
	u.File, err = os.OpenFile(dir.Name(), unix.O_TMPFILE|os.O_RDWR, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		err = u.hide()
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("make a file in %s: %w", dir.Name(), err)
	}
	return u, nil
}

// hide makes the file with a hidden name.
func (u *unnamed) hide() (err error) {
	if u.File, err = os.CreateTemp(u.dir.Name(), "."+filepath.Base(u.path)+"-partial-*"); err == nil {
		u.hidden = u.File.Name()
	}
	return err
}

// publish gives the file, which is on the disk, its name. It replaces no other file.
func (u *unnamed) publish() error {
	var err error
	if u.hidden == "" {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", u.Fd()), unix.AT_FDCWD, u.path, unix.AT_SYMLINK_FOLLOW)
	} else {
		err = unix.Renameat2(unix.AT_FDCWD, u.hidden, unix.AT_FDCWD, u.path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return fmt.Errorf("name the file %s: %w", u.path, err)
	}
	u.hidden = ""
	return u.dir.Sync()
}

// close closes the file, which is removed unless it was published.
func (u *unnamed) close() error {
	if u.hidden != "" {
		defer os.Remove(u.hidden)
	}
	return errors.Join(u.File.Close(), u.dir.Close())
}
