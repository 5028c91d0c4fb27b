package forgetfs

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// sector is what a disk writes as a whole.
const sector = 512

// Loss says what the disk may have lost: what was not synced when the power was cut.
type Loss struct {
	Writes int // of files
	Names  int // changes of names
}

// Survivors writes what a disk may hold after the cut into folder dir, which must be empty.
// Another seed chooses another outcome; some lose all that may be lost, and some nothing.
// The power must be off.
func (f *FS) Survivors(seed uint64, dir string) (Loss, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.down {
		return Loss{}, errors.New("the power is on: call Stop first")
	}
	r := rand.New(rand.NewPCG(seed, 0))
	loss := Loss{Names: len(f.renamed)}
	err := f.export(dir, survivingNames(r, f.renamed).in, func(n *node) []byte {
		loss.Writes += len(n.writes)
		return n.surviving(r)
	})
	if err != nil {
		return Loss{}, fmt.Errorf("write what survives: %w", err)
	}
	return loss, nil
}

// Seen writes what processes see into folder dir, which must be empty: what another process
// would find if the last one was killed.
func (f *FS) Seen(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := func(n *node) map[string]*node { return n.names }
	content := func(n *node) []byte { return n.data }
	if err := f.export(dir, names, content); err != nil {
		return fmt.Errorf("write what is seen: %w", err)
	}
	return nil
}

// export writes the tree into folder dir: of each folder these names, of each file this
// content.
func (f *FS) export(dir string, names func(*node) map[string]*node, content func(*node) []byte) error {
	seen := map[*node]string{}
	var folder func(n *node, path string) error
	folder = func(n *node, path string) error {
		list := names(n)
		for _, name := range slices.Sorted(maps.Keys(list)) {
			child, at := list[name], filepath.Join(path, name)
			first, again := seen[child]
			if again && child.isDir() {
				continue // it was moved, and has both names
			}
			if again {
				if err := os.Link(first, at); err != nil {
					return err
				}
				continue
			}
			seen[child] = at
			if err := child.create(at, content); err != nil {
				return err
			}
			if child.isDir() {
				if err := folder(child, at); err != nil {
					return err
				}
			}
			if err := child.setTimes(at); err != nil {
				return err
			}
		}
		return nil
	}
	return folder(f.root, dir)
}

// create makes n at path: a file with this content, a folder without what is in it.
func (n *node) create(path string, content func(*node) []byte) error {
	var err error
	switch {
	case n.isDir():
		err = os.Mkdir(path, 0o700)
	case n.isFile():
		err = os.WriteFile(path, content(n), 0o600)
	default:
		err = os.Symlink(n.target, path)
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(path, int(n.uid), int(n.gid)); err != nil {
		return err
	}
	if n.mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return unix.Chmod(path, n.mode&^unix.S_IFMT)
}

// setTimes sets the times of what create has made.
func (n *node) setTimes(path string) error {
	times := []unix.Timespec{timespec(n.atime), timespec(n.mtime)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
}

func timespec(t time.Time) unix.Timespec { return unix.NsecToTimespec(t.UnixNano()) }

// An outcome is a way in which a disk may lose what was not synced.
type outcome int

const (
	loseAll  outcome = iota
	keepAll          // the disk was fast
	keepSome         // in the order in which it happened, the last write in part
	shuffle          // in any order
	outcomes
)

// survivingNames chooses which changes of names reach the disk.
func survivingNames(r *rand.Rand, all []*nameChange) *names {
	disk := &names{}
	switch outcome(r.IntN(int(outcomes))) {
	case loseAll:
	case keepAll:
		for _, c := range all {
			disk.do(c, all)
		}
	case keepSome:
		for _, c := range all[:r.IntN(len(all)+1)] {
			disk.do(c, all)
		}
	case shuffle:
		for _, c := range all {
			if r.IntN(2) == 0 {
				disk.do(c, all)
			}
		}
	}
	return disk
}

// surviving returns what the disk holds of a file.
func (n *node) surviving(r *rand.Rand) []byte {
	content := slices.Clone(n.synced)
	how := outcome(r.IntN(int(outcomes)))
	if len(n.writes) == 0 || how == loseAll {
		return content
	}
	if how == keepAll {
		return slices.Clone(n.data)
	}
	if how == keepSome {
		k := r.IntN(len(n.writes))
		for _, w := range n.writes[:k] {
			content = w.apply(content)
		}
		return n.writes[k].torn(r, content)
	}
	return shuffled(r, content, n.writes)
}

// torn does a part of w to content: some of the sectors.
func (w write) torn(r *rand.Rand, content []byte) []byte {
	if w.data == nil {
		return content
	}
	before := slices.Clone(content)
	content = w.apply(content)
	for at := w.off - w.off%sector; at < w.off+int64(len(w.data)); at += sector {
		if r.IntN(2) == 0 {
			old := make([]byte, sector)
			if at < int64(len(before)) {
				copy(old, before[at:])
			}
			copy(content[at:min(at+sector, int64(len(content)))], old)
		}
	}
	if r.IntN(2) == 0 { // the size is written with the sectors, or later
		content = content[:len(before)]
	}
	return content
}

// shuffled returns a file of which each sector holds any value that it had since content was
// synced, and which has any size that it had. A sector of a new part that was not written
// holds zeros, or what the disk had there before.
func shuffled(r *rand.Rand, content []byte, writes []write) []byte {
	values := map[int64][][]byte{}
	sizes := []int{len(content)}
	largest := len(content)
	state := slices.Clone(content)
	for _, w := range writes {
		before := int64(len(state))
		state = w.apply(state)
		from, to := w.off, w.off+int64(len(w.data))
		if w.data == nil {
			from, to = min(w.off, before), max(w.off, before)
		}
		for at := from - from%sector; at < to; at += sector {
			value := make([]byte, sector)
			if at < int64(len(state)) {
				copy(value, state[at:])
			}
			values[at] = append(values[at], value)
		}
		sizes = append(sizes, len(state))
		largest = max(largest, len(state))
	}
	result := append(make([]byte, 0, largest), content...)[:largest]
	if r.IntN(2) == 0 {
		for i := len(content); i < largest; i++ {
			result[i] = byte(r.Uint32())
		}
	}
	for at := int64(0); at < int64(largest); at += sector {
		list := values[at]
		if i := r.IntN(len(list) + 1); i < len(list) {
			copy(result[at:], list[i])
		}
	}
	return result[:sizes[r.IntN(len(sizes))]]
}
