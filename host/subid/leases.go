// Package subid leases ranges of host user and group ids to sandboxes, so that no two
// sandboxes of a host ever share an id, whichever daemons they belong to. A lease
// survives `kill -9` of its daemon until another daemon finds that the owner is gone.
//
// All functions are safe for concurrent use by any number of daemons.
package subid

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/runfolder"
)

// DefaultLeaseDir is the lease folder. All daemons of a host use this one, whatever
// their run folder is, so that no two sandboxes of the host ever share an id.
const DefaultLeaseDir = runfolder.Default + "/ids"

// RangeSize is the number of ids in a lease: what a user namespace with the usual
// 16-bit ids needs.
const RangeSize = 65536

// ErrNoRange says that every id range is leased.
var ErrNoRange = errors.New("every id range is in use")

// Leases hands out host id ranges to the sandboxes of one daemon. A lease is a
// symbolic link in the lease folder, named by the range and pointing to the
// daemon's folder: it appears and vanishes in one step, and it is void once that
// folder is gone. Safe for concurrent use.
type Leases struct {
	dir  string
	pool Pool

	mu   sync.Mutex
	next uint32 // the range to try first: ranges are used round robin, so that one rests before it is used again
}

// OpenLeases opens the lease folder dir, which is made if it is missing, for ranges
// out of pool.
func OpenLeases(dir string, pool Pool) (*Leases, error) {
	dir, err := runfolder.Prepare(dir)
	if err != nil {
		return nil, err
	}
	return &Leases{dir: dir, pool: pool, next: rand.Uint32N(pool.Ranges)}, nil
}

// Acquire leases a range of [RangeSize] ids to the daemon whose instance folder is owner,
// an absolute path, and returns its first id. The lease is held until Release, or until
// that folder is gone.
func (l *Leases) Acquire(owner string) (base uint32, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	common, err := runfolder.Lock(l.dir, unix.LOCK_EX)
	if err != nil {
		return 0, err
	}
	defer common.Close()

	for n := range l.pool.Ranges {
		slot := (l.next + n) % l.pool.Ranges
		base := l.pool.Base + slot*RangeSize
		taken, err := l.take(base, owner)
		if err != nil {
			return 0, err
		}
		if taken {
			l.next = (slot + 1) % l.pool.Ranges
			return base, nil
		}
	}
	return 0, fmt.Errorf("ids from %d: %w", l.pool.Base, ErrNoRange)
}

// AcquireAt leases the range that begins at base, as Acquire does, if it is one of the pool and
// free, and reports whether it did.
func (l *Leases) AcquireAt(owner string, base uint32) (bool, error) {
	if base < l.pool.Base || (base-l.pool.Base)%RangeSize != 0 || (base-l.pool.Base)/RangeSize >= l.pool.Ranges {
		return false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	common, err := runfolder.Lock(l.dir, unix.LOCK_EX)
	if err != nil {
		return false, err
	}
	defer common.Close()
	return l.take(base, owner)
}

// take tries to lease the range that begins at base to owner.
func (l *Leases) take(base uint32, owner string) (bool, error) {
	link := l.link(base)
	err := os.Symlink(owner, link)
	if errors.Is(err, fs.ErrExist) {
		if _, err := os.Stat(link); !errors.Is(err, fs.ErrNotExist) {
			return false, nil // its daemon is still there
		}
		if err := os.Remove(link); err != nil {
			return false, fmt.Errorf("void lease: %w", err)
		}
		err = os.Symlink(owner, link)
	}
	if err != nil {
		return false, fmt.Errorf("lease: %w", err)
	}
	return true, nil
}

// Release ends the lease of the range that begins at base. The caller is sure that
// nothing on the host uses the ids any more.
func (l *Leases) Release(base uint32) error {
	if err := os.Remove(l.link(base)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end of lease: %w", err)
	}
	return nil
}

// ReleaseAll ends every lease of the daemon whose instance folder is owner.
func (l *Leases) ReleaseAll(owner string) error {
	common, err := runfolder.Lock(l.dir, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer common.Close()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		link := filepath.Join(l.dir, e.Name())
		if target, err := os.Readlink(link); err == nil && target == owner {
			if err := os.Remove(link); err != nil {
				return fmt.Errorf("end of lease: %w", err)
			}
		}
	}
	return nil
}

func (l *Leases) link(base uint32) string {
	return filepath.Join(l.dir, strconv.FormatUint(uint64(base), 10))
}
