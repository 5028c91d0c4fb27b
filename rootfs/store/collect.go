package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// Retention says which entries stay that nothing uses. The zero value keeps none.
type Retention struct {
	// Age is how long they stay after their last use. [NoAge] is for ever.
	Age time.Duration
	// Bytes is how much they may take together on the disk; those that were used last
	// stay. [NoBytes] is any amount.
	Bytes int64
}

// The values of Retention that set no bound.
const (
	NoAge   time.Duration = math.MaxInt64
	NoBytes int64         = math.MaxInt64
)

// Item is an entry as a collector sees it.
type Item struct {
	Digest string
	Origin
	Bytes    int64     // on the disk, of the files; of all names of a file once
	LastUsed time.Time // when the last reference was given up; of an entry in use some time within its use
}

// Result says what a collection did. Its lists are in the order of the last use.
type Result struct {
	Removed   []Item
	Unused    []Item // what stays although nothing uses it
	InUse     []Item // what stays because a reference is open, here or in another process
	Leftovers int    // how many folders were removed that dead processes had left in staging
}

// Bytes adds up what items take on the disk.
func Bytes(items []Item) (sum int64) {
	for _, it := range items {
		sum += it.Bytes
	}
	return sum
}

// maxDisk is more than an entry takes on any disk, in bytes: a description that says more is
// damaged.
const maxDisk = 1 << 50

// entryName is the form of an entry's name. Files with other names are left alone.
var entryName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Collect removes the entries that nothing uses, but for those that keep spares, and what
// dead processes have left in staging. It never touches an entry in use and never follows
// a link. An entry that cannot be removed adds to the error, and the others are removed all
// the same. When ctx ends, the next collection removes what this one has begun to.
func (s *Store) Collect(ctx context.Context, keep Retention) (Result, error) {
	s.touchHeld()
	var errs []error
	var r Result
	r.Leftovers, errs = s.sweep(ctx)
	unused, inUse, err := s.survey(ctx, true)
	errs = append(errs, err)
	victims, unused := keep.choose(unused, time.Now())
	r.InUse = inUse
	for _, it := range victims {
		gone, err := false, ctx.Err()
		if err == nil {
			gone, err = s.remove(ctx, it)
		}
		switch {
		case errors.Is(err, errBusy):
			r.InUse = append(r.InUse, it)
			continue
		case errors.Is(err, fs.ErrNotExist): // another collector was faster
			continue
		case gone:
			r.Removed = append(r.Removed, it)
		default:
			r.Unused = append(r.Unused, it)
		}
		if err != nil && !errors.Is(err, errUsed) {
			errs = append(errs, fmt.Errorf("remove %s: %w", s.path(it.Digest), err))
		}
	}
	r.Unused = append(r.Unused, unused...)
	return r, errors.Join(errs...)
}

// Prune is [Store.Collect] for the store in dir. A store that does not exist has nothing,
// and is not made.
func Prune(ctx context.Context, dir string, keep Retention) (Result, error) {
	s, err := existing(dir)
	if s == nil {
		return Result{}, err
	}
	if err := os.MkdirAll(s.staging.dir, 0o700); err != nil {
		return Result{}, fmt.Errorf("make staging folder: %w", err)
	}
	return s.Collect(ctx, keep)
}

// Plan returns what [Prune] would do, without Leftovers, and changes nothing.
func Plan(ctx context.Context, dir string, keep Retention) (Result, error) {
	s, err := existing(dir)
	if s == nil {
		return Result{}, err
	}
	unused, inUse, err := s.survey(ctx, false)
	victims, unused := keep.choose(unused, time.Now())
	return Result{Removed: victims, Unused: unused, InUse: inUse}, err
}

// existing returns the store in dir, or nil if there is none.
func existing(dir string) (*Store, error) {
	s, err := at(dir)
	if err != nil {
		return nil, err
	}
	_, err = os.Stat(s.entries)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// choose divides unused entries, which are in the order of their last use, into those that
// go and those that stay.
func (keep Retention) choose(unused []Item, now time.Time) (victims, stay []Item) {
	total := Bytes(unused)
	for i, it := range unused {
		if now.Sub(it.LastUsed) < keep.Age && total <= keep.Bytes {
			return unused[:i:i], unused[i:]
		}
		total -= it.Bytes
	}
	return unused, nil
}

// sweep removes what dead processes have left in staging.
func (s *Store) sweep(ctx context.Context) (removed int, errs []error) {
	names, err := s.staging.names()
	if err != nil {
		return 0, []error{err}
	}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		gone, err := s.staging.sweep(ctx, name)
		if gone {
			removed++
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return removed, errs
}

// survey looks at all entries. An entry whose last use lies in the future, because the
// clock was wrong, counts as used now; with mend that is recorded.
func (s *Store) survey(ctx context.Context, mend bool) (unused, inUse []Item, err error) {
	list, err := os.ReadDir(s.entries)
	if err != nil {
		return nil, nil, fmt.Errorf("list the store: %w", err)
	}
	var errs []error
	for _, e := range list {
		if !e.IsDir() || !entryName.MatchString(e.Name()) {
			continue
		}
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			break
		}
		it, used, err := s.look(e.Name(), mend)
		switch {
		case errors.Is(err, fs.ErrNotExist): // another collector was faster
		case err != nil:
			errs = append(errs, fmt.Errorf("look at %s: %w", s.path(e.Name()), err))
		case used:
			inUse = append(inUse, it)
		default:
			unused = append(unused, it)
		}
	}
	for _, items := range [][]Item{unused, inUse} {
		slices.SortFunc(items, func(a, b Item) int {
			return cmp.Or(a.LastUsed.Compare(b.LastUsed), cmp.Compare(a.Digest, b.Digest))
		})
	}
	return unused, inUse, errors.Join(errs...)
}

// look describes one entry and reports whether it is in use.
func (s *Store) look(digest string, mend bool) (it Item, used bool, err error) {
	path := s.path(digest)
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return it, false, err
	}
	defer dir.Close()
	info, err := dir.Stat()
	if err != nil {
		return it, false, err
	}
	it = Item{Digest: digest, LastUsed: info.ModTime()}
	meta, err := readMeta(dir, path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a damaged one is removed like others
		return it, false, err
	}
	it.Origin = Origin{meta.Kind, meta.From}.printable()
	if it.Bytes = meta.Disk; it.Bytes <= 0 || it.Bytes > maxDisk {
		if _, it.Bytes, err = measure(path); err != nil {
			return it, false, err
		}
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return it, true, nil
	}
	if err != nil {
		return it, false, os.NewSyscallError("flock", err)
	}
	if now := time.Now(); it.LastUsed.After(now) {
		it.LastUsed = now
		if mend {
			touch(dir)
			it.LastUsed = lastUse(dir)
		}
	}
	return it, false, os.NewSyscallError("flock", unix.Flock(int(dir.Fd()), unix.LOCK_UN))
}

// lastUse returns the recorded time of the last use of the entry in an open directory, or
// the zero time if it cannot be read.
func lastUse(dir *os.File) time.Time {
	info, err := dir.Stat()
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// errUsed is returned for an entry that was used since a collector has looked at it.
var errUsed = errors.New("was used meanwhile")

// remove removes an entry, unless it is in use (errBusy), was used since it was looked at
// (errUsed), or is gone (fs.ErrNotExist). gone reports whether the entry has left the store;
// if there is an error too, a part of it is left in staging.
func (s *Store) remove(ctx context.Context, it Item) (gone bool, err error) {
	path := s.path(it.Digest)
	lock, err := lockDir(path)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, errBusy
	}
	if err != nil {
		return false, err
	}
	if !sameFile(lock, path) || !lastUse(lock).Equal(it.LastUsed) {
		return false, errors.Join(errUsed, unlock(lock))
	}
	failpoint.Pass(failpoint.EntryClaimed)
	st, err := s.staging.adopt(path, lock)
	if err != nil {
		return false, errors.Join(err, unlock(lock))
	}
	failpoint.Pass(failpoint.EntrySetAside)
	return true, st.remove(ctx)
}

// touchHeld records that the entries which this process uses are used now. If the process
// is killed, their last use is not dated to when it began.
func (s *Store) touchHeld() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.holds {
		touch(h.dir)
	}
}
