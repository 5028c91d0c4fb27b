// Package store keeps what is made once for many sandboxes, below the state folder of the
// daemons: extracted zips and other trees, by what is in them, and the images behind /tmp.
// What is made goes to a staging folder and becomes visible by one rename.
package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Store keeps extracted zips by the digest of the zip file, and other trees by a
// name that says what is in them. It is safe for concurrent use, and several
// daemons may share its folder. A process that dies
// leaves at most a staging folder that the next [Open] removes.
type Store struct {
	// Unzip runs a job in a process of its own, which has ended when it returns. It gives
	// the process what it needs of the folder tree; who owns what is made there is of no
	// interest. nil runs jobs in this process. Set it before the store is used.
	Unzip func(ctx context.Context, job extract.ZipJob, zip, tree *os.File) error

	entries string // <dir>/sha256
	staging staging
}

// Entry is an extracted zip, or a tree. Its files belong to the store: nobody writes
// them.
type Entry struct {
	Dir    string // the folder that holds the files
	Digest string // sha256 of the zip file, or of a tree's name, in hexadecimal
	Size   int64  // bytes of all files
}

// entryMeta is written beside an entry's files.
type entryMeta struct {
	Size   int64 `json:"size"`
	Stored int64 `json:"stored"` // bytes of files and links in the tree: a shorter file shows
}

const (
	entryTree = "tree"
	entryFile = "entry.json"
)

// Open opens the store in dir, which it makes (mode 0700) if it is missing,
// and removes partial extractions whose maker is dead.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	entries := filepath.Join(dir, "sha256")
	if err := os.MkdirAll(entries, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	st, err := openStaging(filepath.Join(dir, "staging"))
	if err != nil {
		return nil, err
	}
	return &Store{entries: entries, staging: st}, nil
}

// Leftover says why a partial extraction could not be removed when the store was opened,
// nil if all were. The store can be used nevertheless; the next opening tries again.
func (s *Store) Leftover() error { return s.staging.leftover }

// AddZip extracts the zip at path once and returns its entry, at once if a zip of
// the same content is there already. progress, which may be nil, is called with
// extracted and total bytes. What is wrong with the zip is an [invalid.Error]; after
// any error nothing of the zip is left.
func (s *Store) AddZip(ctx context.Context, path string, limits extract.Limits, progress func(done, total int64)) (Entry, error) {
	limits = limits.WithDefaults()
	f, size, err := openZip(path, limits)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	digest, err := hashCopy(ctx, io.Discard, f, size)
	if err != nil {
		return Entry{}, fmt.Errorf("read %s: %w", path, err)
	}
	if entry, err := s.lookup(path, digest, limits); !errors.Is(err, fs.ErrNotExist) {
		return entry, err
	}
	digest, err = s.stage(func(st *stage) (string, error) {
		return s.stageZip(ctx, st, path, f, limits, progress)
	})
	if err != nil {
		return Entry{}, err
	}
	return s.lookup(path, digest, limits)
}

// AddTree makes the tree of that name once and returns its entry, at once if it is
// there already. The name must say all that the tree depends on; it is hashed apart
// from zips, so a tree is never taken for the files of a zip. fill writes the files
// below root, which is empty, and returns how many bytes they have; root is gone
// when it has returned. After an error of fill, which AddTree passes on, nothing of
// the tree is left.
func (s *Store) AddTree(name string, fill func(root *os.Root) (bytes int64, err error)) (Entry, error) {
	sum := sha256.Sum256([]byte("tree\x00" + name))
	digest := hex.EncodeToString(sum[:])
	if entry, err := s.find(digest); !errors.Is(err, fs.ErrNotExist) {
		return entry, err
	}
	_, err := s.stage(func(st *stage) (string, error) { return digest, stageTree(st, fill) })
	if err != nil {
		return Entry{}, err
	}
	return s.find(digest)
}

// stage lets fill make <stage>/entry and publishes it under the digest that fill
// gives. An entry that another process has published meanwhile stays.
func (s *Store) stage(fill func(st *stage) (digest string, err error)) (digest string, err error) {
	st, err := s.staging.begin()
	if err != nil {
		return "", err
	}
	defer func() {
		if cerr := st.close(); err == nil && cerr != nil {
			err = fmt.Errorf("clear stage: %w", cerr)
		}
	}()
	if digest, err = fill(st); err != nil {
		return "", err
	}
	target := filepath.Join(s.entries, digest)
	err = st.publish("entry", target)
	if errors.Is(err, fs.ErrExist) {
		if _, err := s.find(digest); !errors.Is(err, fs.ErrNotExist) {
			return digest, err // another process was faster
		}
		if err := os.Rename(target, filepath.Join(st.dir, "damaged")); err != nil { // S-11
			return "", fmt.Errorf("set damaged entry aside: %w", err)
		}
		err = st.publish("entry", target)
	}
	return digest, err
}

// stageTree makes <stage>/entry of what fill writes.
func stageTree(st *stage, fill func(root *os.Root) (bytes int64, err error)) error {
	tree := filepath.Join(st.dir, "entry", entryTree)
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
	stored, err := treeBytes(tree)
	if err != nil {
		return fmt.Errorf("stage tree: %w", err)
	}
	meta, err := json.Marshal(entryMeta{Size: bytes, Stored: stored})
	if err != nil {
		return fmt.Errorf("stage tree: %w", err)
	}
	if err := os.WriteFile(filepath.Join(st.dir, "entry", entryFile), meta, 0o600); err != nil {
		return fmt.Errorf("stage tree: %w", err)
	}
	return nil
}

// stageZip extracts the zip into <stage>/entry. It works on a copy that only we can
// write: the digest must be that of the bytes which are extracted, whatever the
// owner of the file does meanwhile.
func (s *Store) stageZip(ctx context.Context, st *stage, path string, f *os.File, limits extract.Limits, progress func(done, total int64)) (digest string, err error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("stage %s: %w", path, err)
	}
	zipCopy, err := os.OpenFile(filepath.Join(st.dir, "zip"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	defer zipCopy.Close()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fail(err)
	}
	if digest, err = hashCopy(ctx, zipCopy, f, limits.ZipBytes); err != nil {
		return fail(err)
	}
	job := extract.ZipJob{File: path, Limits: limits}
	err = stageTree(st, func(root *os.Root) (int64, error) {
		tree, err := root.Open(".")
		if err != nil {
			return 0, err
		}
		defer tree.Close()
		if s.Unzip == nil {
			err = job.Run(ctx, zipCopy, tree, progress)
		} else {
			err = job.Bounds().Watch(ctx, root, func(ctx context.Context) error {
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

// lookup finds the entry of a zip, or says fs.ErrNotExist, also of a damaged one. The
// limits hold for entries that were added under wider ones too.
func (s *Store) lookup(path, digest string, limits extract.Limits) (Entry, error) {
	entry, err := s.find(digest)
	if err == nil && entry.Size > limits.UnzippedBytes {
		return Entry{}, extract.TooLarge(path, limits.UnzippedBytes)
	}
	return entry, err
}

// find finds an entry, or says fs.ErrNotExist, also of a damaged one.
func (s *Store) find(digest string) (Entry, error) {
	dir := filepath.Join(s.entries, digest)
	data, err := os.ReadFile(filepath.Join(dir, entryFile))
	if err != nil {
		return Entry{}, fmt.Errorf("look up entry of the store: %w", err)
	}
	var meta entryMeta
	if err := json.Unmarshal(data, &meta); err != nil {
		return Entry{}, fmt.Errorf("entry %s of the store is damaged (%v): %w", dir, err, fs.ErrNotExist)
	}
	stored, err := treeBytes(filepath.Join(dir, entryTree))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Entry{}, fmt.Errorf("look up entry of the store: %w", err)
	}
	if err != nil || stored != meta.Stored {
		return Entry{}, fmt.Errorf("entry %s of the store is damaged (%d bytes of %d, %v): %w", dir, stored, meta.Stored, err, fs.ErrNotExist)
	}
	return Entry{Dir: filepath.Join(dir, entryTree), Digest: digest, Size: meta.Size}, nil
}

// treeBytes adds up the sizes of the files and links below dir.
func treeBytes(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}

// openZip opens a regular file of an allowed size; a pipe does not block it.
func openZip(path string, limits extract.Limits) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, &invalid.Error{Kind: invalid.NotFound, File: path, Reason: "cannot be opened", Err: invalid.Cause(err),
			Fix: "give a directory or a zip file"}
	}
	info, err := f.Stat()
	if err == nil {
		switch {
		case !info.Mode().IsRegular():
			err = &invalid.Error{Kind: invalid.Package, File: path, Reason: "is neither a directory nor a file", Fix: "give a directory or a zip file"}
		case info.Size() > limits.ZipBytes:
			err = &invalid.Error{Kind: invalid.TooLarge, File: path,
				Reason: fmt.Sprintf("is a zip of %s, %s are allowed", invalid.Megabytes(info.Size()), invalid.Megabytes(limits.ZipBytes)), Fix: invalid.FixLeaveOut}
		default:
			return f, info.Size(), nil
		}
	}
	f.Close()
	return nil, 0, err
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
