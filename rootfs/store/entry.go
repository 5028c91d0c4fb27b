package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Entry is an extracted zip, or a tree. Its files belong to the store: nobody writes
// them.
type Entry struct {
	Dir    string // the folder that holds the files
	Digest string // sha256 of the zip file, or of a tree's name, in hexadecimal
	Size   int64  // bytes of all files
}

// Kind says what an entry is for. "" is an entry whose description is lost.
type Kind string

// The kinds of entries.
const (
	KindZip   Kind = "zip"   // the files of a zip
	KindImage Kind = "image" // the files of a container image
	KindLayer Kind = "layer" // one of its layers
	KindTmp   Kind = "tmp"   // the image behind /tmp
)

// Origin says what an entry was made of, for those who look through the store.
type Origin struct {
	Kind Kind
	From string // what the operator called it when the entry was made: a file's name, or a reference; may be empty
}

// maxFrom bounds an Origin's From, in bytes.
const maxFrom = 256

// printable returns the origin with a name that is short and has no control characters.
func (o Origin) printable() Origin {
	o.From = strings.ToValidUTF8(o.From[:min(len(o.From), maxFrom)], "")
	o.From = strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, o.From)
	switch o.Kind {
	case KindZip, KindImage, KindLayer, KindTmp:
	default:
		o.Kind = ""
	}
	return o
}

// entryMeta is written beside an entry's files.
type entryMeta struct {
	Size   int64  `json:"size"`
	Stored int64  `json:"stored"` // bytes of files and links in the tree: a shorter file shows
	Disk   int64  `json:"disk"`   // bytes that the tree took on the disk when it was made
	Kind   Kind   `json:"kind"`
	From   string `json:"from"`
	Form   int    `json:"form"` // entryForm when it was made
}

// entryForm says what is made of a package: since 2, files have the times that a zip has for
// them. An entry of another form is made anew.
const entryForm = 2

const (
	entryTree = "tree"
	entryFile = "entry.json"
	// maxMeta bounds an entry's description in bytes; a longer one is damaged.
	maxMeta = 64 << 10
)

// writeMeta writes the description of the tree in dir.
func writeMeta(dir string, size int64, origin Origin) error {
	stored, disk, err := measure(filepath.Join(dir, entryTree))
	if err != nil {
		return err
	}
	origin = origin.printable()
	text, err := json.Marshal(entryMeta{Size: size, Stored: stored, Disk: disk, Kind: origin.Kind, From: origin.From, Form: entryForm})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, entryFile), text, 0o600)
}

// damaged returns the error for an entry that must be made anew.
func damaged(path string, why error) error {
	return fmt.Errorf("entry %s of the store is damaged (%v): %w", path, why, fs.ErrNotExist)
}

// readMeta reads the description of the entry at path, whose directory is open as dir. If
// there is none that can be read, the error is fs.ErrNotExist.
func readMeta(dir *os.File, path string) (m entryMeta, err error) {
	name := filepath.Join(path, entryFile)
	fd, err := unix.Openat(int(dir.Fd()), entryFile, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return m, damaged(path, err)
	}
	if err != nil {
		return m, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxMeta))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return entryMeta{}, damaged(path, err)
	}
	return m, nil
}

// inspectEntry checks the entry at path, whose directory is open as dir, against its
// description. If it is damaged, the error is fs.ErrNotExist. check, which may be nil, finds
// damage that the sizes of the files do not show.
func inspectEntry(dir *os.File, path string, check func(tree string) error) (Entry, error) {
	meta, err := readMeta(dir, path)
	if err != nil {
		return Entry{}, err
	}
	if meta.Form != entryForm {
		return Entry{}, damaged(path, errors.New("another version made it, in another form"))
	}
	tree := filepath.Join(path, entryTree)
	stored, _, err := measure(tree)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Entry{}, err
	}
	if err == nil && stored != meta.Stored {
		err = fmt.Errorf("%d bytes of %d", stored, meta.Stored)
	}
	if err == nil && check != nil {
		err = check(tree)
	}
	if err != nil {
		return Entry{}, damaged(path, err)
	}
	return Entry{Dir: tree, Digest: filepath.Base(path), Size: meta.Size}, nil
}

// statBlock is the unit of the kernel's st_blocks, in bytes.
const statBlock = 512

// measure adds up what lies in dir: the lengths of files and links, name by name, and the
// bytes that everything takes on the disk, where a file with several names counts once. A file
// that has names elsewhere too does not count: it is that of a layer, whose entry counts it.
func measure(dir string) (stored, disk int64, err error) {
	type inode struct{ dev, ino uint64 }
	type shared struct{ missing, disk int64 }
	seen := map[inode]shared{}
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !e.IsDir() {
			stored += info.Size()
		}
		st := info.Sys().(*syscall.Stat_t)
		if e.IsDir() || st.Nlink == 1 {
			disk += st.Blocks * statBlock
			return nil
		}
		id := inode{uint64(st.Dev), st.Ino}
		s, known := seen[id]
		if !known {
			s = shared{int64(st.Nlink), st.Blocks * statBlock}
		}
		s.missing--
		seen[id] = s
		return nil
	})
	for _, s := range seen {
		if s.missing == 0 {
			disk += s.disk
		}
	}
	return stored, disk, err
}
