// Package store keeps what is made once for many sandboxes, below the state folder of the
// daemons: the files of zips and images, by what is in them, and the images behind /tmp.
//
// What is made goes to a staging folder and becomes visible by one rename. A lookup returns
// a [Ref], which is a shared lock on the entry's directory. [Store.Collect] renames an entry
// that it can lock exclusively into the staging folder, and removes it there.
package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Store keeps extracted zips by the digest of the zip file, and other trees by a
// name that says what is in them. It is safe for concurrent use, and several
// daemons may share its folder. A process that dies leaves at most a folder in staging,
// which the next [Open] or [Store.Collect] removes.
type Store struct {
	// Unzip runs a job in a process of its own, which has ended when it returns. It gives
	// the process what it needs of the folder tree; who owns what is made there is of no
	// interest. nil runs jobs in this process. Set it before the store is used.
	Unzip func(ctx context.Context, job extract.ZipJob, zip, tree *os.File) error

	entries string // <dir>/sha256
	staging staging

	patience time.Duration // how long to wait for an entry that another process has locked

	mu    sync.Mutex
	holds map[string]*hold // the entries that are in use by this Store, by digest
}

// Open opens the store in dir, which it makes (mode 0700) if it is missing,
// and removes partial extractions whose maker is dead.
func Open(dir string) (*Store, error) {
	s, err := at(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.entries, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if s.staging, err = openStaging(s.staging.dir); err != nil {
		return nil, err
	}
	return s, nil
}

// at returns the store in dir and touches nothing there.
func at(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return &Store{
		entries: filepath.Join(dir, "sha256"), staging: staging{dir: filepath.Join(dir, "staging")},
		patience: lockPatience, holds: map[string]*hold{},
	}, nil
}

// Leftover says why a partial extraction could not be removed when the store was opened,
// nil if all were. The store can be used nevertheless; the next opening tries again.
func (s *Store) Leftover() error { return s.staging.leftover }

// TempFile makes an empty file on the disk of the store, without a name: it is gone when its
// last descriptor is closed.
func (s *Store) TempFile() (f *os.File, err error) {
	st, err := s.staging.begin()
	if err != nil {
		return nil, err
	}
	f, err = os.OpenFile(filepath.Join(st.dir, "file"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if cerr := st.close(); err == nil && cerr != nil {
		err = errors.Join(cerr, f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("make temporary file: %w", err)
	}
	return f, nil
}

// WatchSpace runs fill, which lets another process write to files of TempFile, and ends its
// context when hardly anything is left of the disk. file is what messages name.
func (s *Store) WatchSpace(ctx context.Context, file string, fill func(context.Context) error) error {
	root, err := os.OpenRoot(s.staging.dir)
	if err != nil {
		return fmt.Errorf("open staging folder: %w", err)
	}
	defer root.Close()
	return extract.Bounds{File: file}.WatchSpace(ctx, root, fill)
}

// AddZip extracts the zip at path once and returns a reference to its entry, at once if a
// zip of the same content is there already. progress, which may be nil, is called with
// extracted and total bytes; the total is 0 if it is not known. What is wrong with the zip is an [invalid.Error]; after
// any error nothing of the zip is left.
func (s *Store) AddZip(ctx context.Context, path string, limits extract.Limits, progress func(done, total int64)) (*Ref, error) {
	limits = limits.WithDefaults()
	f, size, err := openZip(path, limits)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	digest, err := hashCopy(ctx, io.Discard, f, size)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	ref, err := s.find(ctx, digest, nil)
	if errors.Is(err, fs.ErrNotExist) {
		ref, err = s.make(ctx, nil, func(st *stage) (string, error) {
			return s.stageZip(ctx, st, zipSource{path, f, ""}, limits, progress)
		})
	}
	if err != nil {
		return nil, err
	}
	return within(ref, path, limits)
}

// within returns ref, unless it was added under wider limits.
func within(ref *Ref, about string, limits extract.Limits) (*Ref, error) {
	if ref.Size > limits.UnzippedBytes {
		return nil, errors.Join(extract.TooLarge(about, limits.UnzippedBytes), ref.Close())
	}
	return ref, nil
}

// HoldZip returns a reference to the entry of the zip with that digest, or nil if there is
// none. about names the zip in messages.
func (s *Store) HoldZip(ctx context.Context, digest, about string, limits extract.Limits) (*Ref, error) {
	ref, err := s.find(ctx, digest, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return within(ref, about, limits.WithDefaults())
}

// AddOpenZip is AddZip for an open file whose owner is not trusted. The file may be of any
// kind and may change meanwhile. Its digest must be the one given, or the error is an
// [invalid.Error] of kind invalid.ErrDigest. The file's offset is neither used nor changed.
func (s *Store) AddOpenZip(ctx context.Context, f *os.File, digest, about string, limits extract.Limits) (*Ref, error) {
	limits = limits.WithDefaults()
	if ref, err := s.HoldZip(ctx, digest, about, limits); ref != nil || err != nil {
		return ref, err
	}
	if _, err := checkZip(f, about, limits); err != nil {
		return nil, err
	}
	ref, err := s.make(ctx, nil, func(st *stage) (string, error) {
		return s.stageZip(ctx, st, zipSource{about, io.NewSectionReader(f, 0, math.MaxInt64), digest}, limits, nil)
	})
	if err != nil {
		return nil, err
	}
	return within(ref, about, limits)
}

// AddTree makes the tree of that name once and returns a reference to its entry, at once if
// it is there already. The name must say all that the tree depends on; it is hashed apart
// from zips, so a tree is never taken for the files of a zip. fill writes the files
// below root, which is empty, and returns how many bytes they have; root is gone
// when it has returned. After an error of fill, which AddTree passes on, nothing of
// the tree is left.
func (s *Store) AddTree(ctx context.Context, name string, origin Origin, fill func(root *os.Root) (bytes int64, err error)) (*Ref, error) {
	return s.addTree(ctx, name, origin, nil, fill)
}

// HoldTree returns a reference to the entry of the tree of that name, without a look at its files,
// or nil if there is none.
func (s *Store) HoldTree(ctx context.Context, name string) (*Ref, error) {
	digest := treeDigest(name)
	h, err := s.acquire(ctx, digest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up entry of the store: %w", err)
	}
	return &Ref{Entry: Entry{Dir: filepath.Join(s.path(digest), entryTree), Digest: digest}, store: s, hold: h}, nil
}

func treeDigest(name string) string {
	sum := sha256.Sum256([]byte("tree\x00" + name))
	return hex.EncodeToString(sum[:])
}

// addTree is AddTree with a check as inspectEntry has it.
func (s *Store) addTree(ctx context.Context, name string, origin Origin, check func(tree string) error, fill func(root *os.Root) (bytes int64, err error)) (*Ref, error) {
	digest := treeDigest(name)
	if ref, err := s.find(ctx, digest, check); !errors.Is(err, fs.ErrNotExist) {
		return ref, err
	}
	return s.make(ctx, check, func(st *stage) (string, error) { return digest, stageTree(st, origin, fill) })
}

// make lets fill make <stage>/entry, publishes it under the digest that fill gives, and
// returns a reference to it. An entry that another process has published meanwhile stays,
// unless it is damaged (S-11).
func (s *Store) make(ctx context.Context, check func(tree string) error, fill func(st *stage) (digest string, err error)) (ref *Ref, err error) {
	st, err := s.staging.begin()
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := st.close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("clear stage: %w", cerr), ref.Close())
			ref = nil
		}
	}()
	digest, err := fill(st)
	if err != nil {
		return nil, err
	}
	late := time.Now().Add(s.patience)
	for pause := lockPause; ; pause = min(2*pause, maxLockPause) {
		if ref, err = s.publish(st, digest); !errors.Is(err, fs.ErrExist) {
			return ref, err
		}
		if ref, err = s.find(ctx, digest, check); !errors.Is(err, fs.ErrNotExist) {
			return ref, err // another process was faster
		}
		switch err := s.setAside(digest, st, check); {
		case err == nil:
			continue
		case !errors.Is(err, errBusy):
			return nil, err
		case time.Now().After(late): // before that, others may only be looking at it
			return nil, fmt.Errorf("%s is damaged, and cannot be made anew while running daemons use it; end them ('sandboxd ps' lists them), or choose another --state-dir", s.path(digest))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("make %s anew, which is damaged and in use: %w", s.path(digest), ctx.Err())
		case <-time.After(pause):
		}
	}
}

// publish gives the entry in the stage its name. It locks the entry first, so that no
// collector can take it out before.
func (s *Store) publish(st *stage, digest string) (*Ref, error) {
	lock, err := flockDir(filepath.Join(st.dir, "entry"), unix.LOCK_SH)
	if err != nil {
		return nil, fmt.Errorf("lock entry: %w", err)
	}
	if err := st.publish("entry", s.path(digest)); err != nil {
		lock.Close()
		return nil, err
	}
	h, path := s.held(digest, lock), s.path(digest)
	meta, err := readMeta(h.dir, path)
	if err != nil {
		return nil, errors.Join(err, s.release(h))
	}
	return &Ref{Entry: Entry{Dir: filepath.Join(path, entryTree), Digest: digest, Size: meta.Size}, store: s, hold: h}, nil
}

// stageTree makes <stage>/entry of what fill writes.
func stageTree(st *stage, origin Origin, fill func(root *os.Root) (bytes int64, err error)) error {
	entry := filepath.Join(st.dir, "entry")
	tree := filepath.Join(entry, entryTree)
	if err := os.MkdirAll(tree, 0o700); err != nil {
		return fmt.Errorf("stage tree: %w", err)
	}
	if err := os.Chmod(tree, 0o755); err != nil { // the sandbox user's /var/task, or part of its root
		return fmt.Errorf("stage tree: %w", err)
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		return fmt.Errorf("stage tree: %w", err)
	}
	defer root.Close()
	bytes, err := fill(root)
	if err != nil {
		return err
	}
	if err := writeMeta(entry, bytes, origin); err != nil {
		return fmt.Errorf("stage tree: %w", err)
	}
	return nil
}

// zipSource is where the bytes of a zip come from.
type zipSource struct {
	about  string // its path, or what to call it in messages
	bytes  io.ReadSeeker
	digest string // that it must have; "" is any
}

// stageZip extracts the zip into <stage>/entry. It works on a copy that only we can
// write: the digest must be that of the bytes which are extracted, whatever the
// owner of the file does meanwhile.
func (s *Store) stageZip(ctx context.Context, st *stage, zip zipSource, limits extract.Limits, progress func(done, total int64)) (digest string, err error) {
	path := zip.about
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("stage %s: %w", path, err)
	}
	zipCopy, err := os.OpenFile(filepath.Join(st.dir, "zip"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	defer zipCopy.Close()
	if _, err := zip.bytes.Seek(0, io.SeekStart); err != nil {
		return fail(err)
	}
	if digest, err = hashCopy(ctx, zipCopy, zip.bytes, limits.ZipBytes); err != nil {
		return fail(err)
	}
	if zip.digest != "" && digest != zip.digest {
		return "", &invalid.Error{Kind: invalid.ErrDigest, File: path, Reason: fmt.Sprintf("has the digest %s, not %s", digest, zip.digest), Fix: "send it again"}
	}
	job := extract.ZipJob{File: path, Limits: limits}
	err = stageTree(st, Origin{KindZip, filepath.Base(path)}, func(root *os.Root) (int64, error) {
		tree, err := root.Open(".")
		if err != nil {
			return 0, err
		}
		defer tree.Close()
		if s.Unzip == nil {
			err = job.Run(ctx, zipCopy, tree, progress)
		} else {
			bounds := job.Bounds()
			if progress != nil {
				bounds.Progress = func(done int64) { progress(done, 0) } // only that process knows the total
			}
			err = bounds.Watch(ctx, root, func(ctx context.Context) error {
				return s.unzipElsewhere(ctx, job, zipCopy.Name(), tree)
			})
		}
		if err != nil {
			return 0, err
		}
		return job.Bounds().Adopt(root)
	})
	failpoint.Pass(failpoint.ZipStaged)
	return digest, err
}

// unzipElsewhere runs the job in another process, which can only read the zip.
func (s *Store) unzipElsewhere(ctx context.Context, job extract.ZipJob, path string, tree *os.File) error {
	zip, err := os.Open(path)
	if err != nil {
		return err
	}
	defer zip.Close()
	return s.Unzip(ctx, job, zip, tree)
}

// openZip opens a regular file of an allowed size; a pipe does not block it.
func openZip(path string, limits extract.Limits) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, &invalid.Error{Kind: invalid.ErrNotFound, File: path, Reason: "cannot be opened", Err: invalid.Cause(err),
			Fix: "give a directory or a zip file"}
	}
	size, err := checkZip(f, path, limits)
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

// checkZip returns the size of f, which must be a regular file of an allowed size.
func checkZip(f *os.File, about string, limits extract.Limits) (int64, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return 0, err
	case !info.Mode().IsRegular():
		return 0, &invalid.Error{Kind: invalid.ErrPackage, File: about, Reason: "is neither a directory nor a file", Fix: "give a directory or a zip file"}
	case info.Size() > limits.ZipBytes:
		return 0, &invalid.Error{Kind: invalid.ErrTooLarge, File: about,
			Reason: fmt.Sprintf("is a zip of %s, %s are allowed", invalid.Megabytes(info.Size()), invalid.Megabytes(limits.ZipBytes)), Fix: invalid.FixLeaveOut}
	}
	return info.Size(), nil
}

// hashCopy copies r to w until its end, or refuses after most bytes.
func hashCopy(ctx context.Context, w io.Writer, r io.Reader, most int64) (digest string, err error) {
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(sum, w), io.LimitReader(contextReader{ctx, r}, most+1))
	if err != nil {
		return "", err
	}
	if n > most {
		return "", errors.New("grew while it was read")
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// contextReader ends a copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
