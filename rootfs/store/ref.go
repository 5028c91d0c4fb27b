package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Ref is a reference to an entry. While one is open, in this process or in another, the
// entry's files stay as they are: nobody removes or replaces them. References end with
// their process, however it ends.
type Ref struct {
	Entry

	store *Store
	hold  *hold
	once  sync.Once
	err   error // of Close
}

// hold is a shared lock on an entry, which all references of a Store to that entry share.
type hold struct {
	digest string
	dir    *os.File // the entry's directory, with the lock
	count  int      // of references; guarded by Store.mu
}

// Close gives the reference up. Closing again, or closing nil, does nothing.
func (r *Ref) Close() error {
	if r == nil {
		return nil
	}
	r.once.Do(func() { r.err = r.store.release(r.hold) })
	return r.err
}

// Refs are references that are held and given up together. The zero value is none.
type Refs []*Ref

// Close closes all of them.
func (r Refs) Close() error {
	var errs []error
	for _, ref := range r {
		errs = append(errs, ref.Close())
	}
	return errors.Join(errs...)
}

// find returns a reference to an entry. If there is none, or it is damaged, the error is
// fs.ErrNotExist. check is as for inspectEntry.
func (s *Store) find(ctx context.Context, digest string, check func(tree string) error) (*Ref, error) {
	h, err := s.acquire(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("look up entry of the store: %w", err)
	}
	entry, err := inspectEntry(h.dir, s.path(digest), check)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look up entry of the store: %w", err), s.release(h))
	}
	return &Ref{Entry: entry, store: s, hold: h}, nil
}

// acquire counts one more reference to an entry, and locks the entry if it is the first
// one. If there is no such entry, the error is fs.ErrNotExist.
func (s *Store) acquire(ctx context.Context, digest string) (*hold, error) {
	if h := s.held(digest, nil); h != nil {
		return h, nil
	}
	dir, err := s.lockEntry(ctx, digest)
	if err != nil {
		return nil, err
	}
	touch(dir)
	return s.held(digest, dir), nil
}

// held counts one more reference to an entry. The first one needs lock, a shared lock on
// the entry, which held takes over; without it, held returns nil. If there are references
// already, held closes lock.
func (s *Store) held(digest string, lock *os.File) *hold {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.holds[digest]
	switch {
	case h != nil && lock != nil:
		_ = unlock(lock) // another goroutine was faster
	case h == nil && lock == nil:
		return nil
	case h == nil:
		h = &hold{digest: digest, dir: lock}
		s.holds[digest] = h
	}
	h.count++
	return h
}

// release counts one reference less, and unlocks the entry after the last one.
func (s *Store) release(h *hold) error {
	s.mu.Lock()
	h.count--
	last := h.count == 0
	if last {
		delete(s.holds, h.digest)
	}
	s.mu.Unlock()
	if !last {
		return nil
	}
	touch(h.dir)
	return unlock(h.dir)
}

// A collector locks an entry exclusively for a few system calls, in which it finds out
// whether the entry is in use, or takes it out. A lookup tries again meanwhile: flock can
// wait, but neither for a limited time nor until a context ends.
const (
	lockPause    = time.Millisecond       // between two tries
	maxLockPause = 250 * time.Millisecond // between two tries that read the whole entry
	lockPatience = 10 * time.Second       // for all tries
)

// lockEntry takes a shared lock on an entry that is there.
func (s *Store) lockEntry(ctx context.Context, digest string) (*os.File, error) {
	path := s.path(digest)
	ctx, cancel := context.WithTimeoutCause(ctx, s.patience,
		fmt.Errorf("a process has kept %s locked for %v; 'lslocks' names it: end it", path, s.patience))
	defer cancel()
	for {
		dir, err := flockDir(path, unix.LOCK_SH)
		switch {
		case err == nil && sameFile(dir, path):
			return dir, nil
		case err == nil:
			dir.Close() // it was taken out before it was locked
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockPause):
		}
	}
}

// errBusy is returned for an entry that others have locked.
var errBusy = errors.New("in use")

// setAside moves a damaged entry into st. If others have locked it, the error is errBusy.
// An entry that another process has made anew meanwhile stays.
func (s *Store) setAside(digest string, st *stage, check func(tree string) error) error {
	path := s.path(digest)
	lock, err := lockDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // another process was faster
	case errors.Is(err, unix.EWOULDBLOCK):
		return errBusy
	case err != nil:
		return fmt.Errorf("set damaged entry aside: %w", err)
	}
	defer unlock(lock)
	if !sameFile(lock, path) {
		return nil
	}
	if _, err := inspectEntry(lock, path, check); err == nil {
		return nil
	}
	if err := os.Rename(path, filepath.Join(st.dir, "damaged")); err != nil {
		return fmt.Errorf("set damaged entry aside: %w", err)
	}
	return nil
}

// touch records that an entry is used now. Where that fails, as on a disk that is
// read-only, the entry counts as unused for longer than it is, which costs no more than
// making it anew.
func touch(dir *os.File) {
	now := unix.NsecToTimeval(time.Now().UnixNano())
	_ = unix.Futimes(int(dir.Fd()), []unix.Timeval{now, now})
}

// path is where the entry of that digest is, if there is one.
func (s *Store) path(digest string) string { return filepath.Join(s.entries, digest) }
