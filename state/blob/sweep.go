package blob

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Swept says what a sweep did.
type Swept struct {
	Removed int
	Bytes   int64
	Kept    int
}

// Sweep removes the blobs that are older than grace, have no pin, and that keep does not want
// kept. keep is asked about one blob at a time; it must see every reference that was written
// down before it was asked, and must not call the store. Who writes down a reference must
// have a pin of the blob meanwhile, or there must be another reference throughout.
//
// An error of keep ends the sweep. A blob that cannot be removed adds to the error.
func (s *Store) Sweep(ctx context.Context, grace time.Duration, keep func(Digest) (bool, error)) (Swept, error) {
	var done Swept
	all, err := s.List(ctx)
	if err != nil {
		return done, err
	}
	var errs []error
	for _, d := range all {
		if err := ctx.Err(); err != nil {
			return done, errors.Join(append(errs, err)...)
		}
		size, old, err := s.isOlder(d, grace)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err == nil && !old {
			done.Kept++
			continue
		}
		var wanted bool
		var keepErr error
		if err == nil {
			err = s.remove(d, func() bool {
				wanted, keepErr = keep(d)
				return wanted || keepErr != nil
			})
		}
		switch {
		case keepErr != nil:
			return done, errors.Join(append(errs, keepErr)...)
		case wanted, errors.Is(err, ErrInUse):
			done.Kept++
		case err != nil:
			done.Kept++
			errs = append(errs, err)
		default:
			done.Removed++
			done.Bytes += size
		}
	}
	return done, errors.Join(errs...)
}

// isOlder returns a blob's size, and reports whether it was written longer ago than grace.
func (s *Store) isOlder(d Digest, grace time.Duration) (int64, bool, error) {
	info, err := s.root.Lstat(file(d))
	if err != nil {
		return 0, false, missing(d, err)
	}
	age := time.Since(info.ModTime())
	if age < 0 { // a clock was wrong: that must not keep it for years
		now := time.Now()
		return info.Size(), false, s.root.Chtimes(file(d), now, now)
	}
	return info.Size(), age > grace, nil
}

// Remove removes a blob. Kinds of errors: ErrNotFound; ErrInUse if it has a pin, or all blobs
// are held.
func (s *Store) Remove(d Digest) error {
	return s.remove(d, func() bool { return false })
}

// remove removes a blob unless it is wanted.
func (s *Store) remove(d Digest, wanted func() bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[d] > 0 || s.holds > 0 {
		return fmt.Errorf("blob %x: %w", d, ErrInUse)
	}
	if wanted() {
		return nil
	}
	// A removal that the disk forgets is done again by the next sweep.
	if err := s.root.Remove(file(d)); err != nil {
		return missing(d, err)
	}
	return nil
}

// Hold keeps all blobs until release is called, for a backup.
func (s *Store) Hold() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.holds--
	})
}
