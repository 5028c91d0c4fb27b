// Package blob keeps content by its SHA-256: the code of functions, layers, large values. A
// blob is a file, which never changes; it is on the disk when [Store.Put] returns
// (docs/decisions/0052).
//
// Below the folder that a store is given:
//
//	blobs/sha256/ab/ab12…   a blob, with its digest in hexadecimal as its name
//	blobs/temp/…            what is being written; what a killed process left goes at the next start
//
// A store needs nothing but that folder: no other file, no socket, no process. One process
// at a time has it.
//
// Blobs that nothing refers to are removed by [Store.Sweep]. Who knows what is referred to is
// the caller. A [Pin] keeps a blob until the caller has written down its reference.
package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"

	"golang.org/x/sys/unix"
)

// Digest is the SHA-256 of a blob.
type Digest = [sha256.Size]byte

// Kinds of errors, for errors.Is.
var (
	ErrNotFound = errors.New("there is no such blob")
	ErrDamaged  = errors.New("the blob is damaged: its content has another digest")
	ErrDigest   = errors.New("the content has another digest than announced")
	ErrTooLarge = errors.New("the content is too large")
	ErrNoSpace  = errors.New("too little space is left on the disk")
	ErrInUse    = errors.New("in use")
)

// Options are settings of a store. The zero value has the defaults.
type Options struct {
	// Uploads is how many are written at once; others wait. 0 is 2.
	Uploads int
	// Floor is how many bytes of the disk stay free: what would leave fewer is refused with
	// ErrNoSpace.
	Floor int64
}

// The folders of a store.
const (
	base   = "blobs"
	shards = base + "/sha256"
	temp   = base + "/temp"
)

// Store is the blobs in a folder. Its methods can be called from several goroutines.
type Store struct {
	root    *os.Root
	dir     *os.File // blobs: locked as long as the store is open
	options Options
	uploads chan struct{} // a place for each that may be written now

	// A blob is removed only while mu is held and it has no pin, so what has one stays.
	mu    sync.Mutex
	pins  map[Digest]int
	holds int
	last  uint64 // number of a temporary file
}

// Open opens the store in a folder, and makes it if there is none. It removes what was
// being written when the last process ended. The folder stays the caller's to close, after
// the store.
func Open(root *os.Root, options Options) (*Store, error) {
	if options.Uploads == 0 {
		options.Uploads = 2
	}
	s := &Store{root: root, options: options, uploads: make(chan struct{}, options.Uploads), pins: map[Digest]int{}}
	if err := s.open(); err != nil {
		if s.dir != nil {
			s.dir.Close()
		}
		return nil, fmt.Errorf("open the blobs in %s: %w", root.Name(), err)
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if err := s.mkdir(base); err != nil {
		return err
	}
	if s.dir, err = s.root.Open(base); err != nil {
		return err
	}
	if err := unix.Flock(int(s.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("another process uses them: %w", ErrInUse)
	} else if err != nil {
		return fmt.Errorf("lock the folder: %w", err)
	}
	for _, dir := range []string{shards, temp} {
		if err := s.mkdir(dir); err != nil {
			return err
		}
	}
	// All are made now, so that no upload has to wait for a new folder's name to be on the disk.
	for i := range 256 {
		if err := s.mkdir(fmt.Sprintf("%s/%02x", shards, i)); err != nil {
			return err
		}
	}
	// An earlier start may have been killed before it got here.
	for _, dir := range []string{shards, base, "."} {
		if err := s.syncFolder(dir); err != nil {
			return err
		}
	}
	left, err := s.names(temp)
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := s.root.RemoveAll(path.Join(temp, name)); err != nil {
			return err
		}
	}
	return nil
}

// Close lets another process have the store. No method may be called afterwards.
func (s *Store) Close() error { return s.dir.Close() }

// Parse reads a digest in hexadecimal.
func Parse(text string) (d Digest, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(d) || hex.EncodeToString(b) != text {
		return d, fmt.Errorf("%q is no digest of %d lower-case hexadecimal digits", text, 2*len(d))
	}
	return Digest(b), nil
}

// file is the path of a blob below the root.
func file(d Digest) string { return fmt.Sprintf("%s/%02x/%x", shards, d[0], d) }

// mkdir makes a folder unless there is one.
func (s *Store) mkdir(dir string) error {
	if err := s.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// syncFolder has the disk keep the names in a folder.
func (s *Store) syncFolder(dir string) error {
	f, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// names lists a folder.
func (s *Store) names(dir string) ([]string, error) {
	f, err := s.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
