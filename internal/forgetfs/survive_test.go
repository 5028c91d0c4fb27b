package forgetfs

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a file system that is not mounted.
type disk struct {
	*FS
	t *testing.T
}

func newDisk(t *testing.T) disk { return disk{newFS(0), t} }

func (d disk) file(dir *node, name string) *node {
	n := d.newNode(unix.S_IFREG | 0o600)
	d.rename(dir, name, n, nil)
	return n
}

func (d disk) folder(dir *node, name string) *node {
	n := d.newNode(unix.S_IFDIR | 0o700)
	d.rename(dir, name, n, nil)
	return n
}

func (d disk) put(n *node, off int64, text string) {
	d.t.Helper()
	if err := d.write(n, write{off: off, data: []byte(text)}); err != nil {
		d.t.Fatal(err)
	}
}

func (d disk) truncate(n *node, size int64) {
	d.t.Helper()
	if err := d.write(n, write{off: size}); err != nil {
		d.t.Fatal(err)
	}
}

// moveName is rename(2).
func (d disk) moveName(from *node, name string, to *node, newName string) {
	added := d.rename(to, newName, from.names[name], nil)
	d.rename(from, name, nil, added)
}

// outcomesOf returns what may survive, each outcome once: "path=content " of all files in order.
func (d disk) outcomesOf() map[string]int {
	d.t.Helper()
	d.Stop()
	found := map[string]int{}
	for seed := range uint64(300) {
		dir := d.t.TempDir()
		if _, err := d.Survivors(seed, dir); err != nil {
			d.t.Fatal(err)
		}
		found[listing(d.t, dir)]++
		if err := os.RemoveAll(dir); err != nil {
			d.t.Fatal(err)
		}
	}
	return found
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		b.WriteString(strings.TrimPrefix(path, dir+"/"))
		if e.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b.WriteString("=" + string(content))
		}
		b.WriteByte(' ')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), " ")
}

// Names and contents survive as far as they were synced, each for itself.
func TestWhatMaySurvive(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(d disk)
		want []string // all that may be, in order
	}{
		{"nothing synced", func(d disk) { d.put(d.file(d.root, "a"), 0, "x") }, []string{"", "a=", "a=\x00", "a=?", "a=x"}},
		{"file synced, name not", func(d disk) {
			n := d.file(d.root, "a")
			d.put(n, 0, "x")
			d.syncFile(n)
		}, []string{"", "a=x"}},
		{"name synced, file not", func(d disk) {
			d.put(d.file(d.root, "a"), 0, "x")
			d.syncFolder(d.root)
		}, []string{"a=", "a=\x00", "a=?", "a=x"}},
		{"both synced", func(d disk) {
			n := d.file(d.root, "a")
			d.put(n, 0, "x")
			d.syncFile(n)
			d.syncFolder(d.root)
		}, []string{"a=x"}},
		{"written again", func(d disk) {
			n := d.file(d.root, "a")
			d.put(n, 0, "x")
			d.syncFile(n)
			d.syncFolder(d.root)
			d.put(n, 0, "y")
			d.put(n, 0, "z")
		}, []string{"a=x", "a=y", "a=z"}},
		{"removed", func(d disk) {
			n := d.file(d.root, "a")
			d.put(n, 0, "x")
			d.syncFile(n)
			d.syncFolder(d.root)
			d.rename(d.root, "a", nil, nil)
		}, []string{"", "a=x"}},
		{"renamed in its folder", func(d disk) {
			n := d.file(d.root, "a")
			d.syncFolder(d.root)
			d.syncFile(n)
			d.moveName(d.root, "a", d.root, "b")
		}, []string{"a=", "a= b=", "b="}},
		{"renamed onto another", func(d disk) {
			old, n := d.file(d.root, "b"), d.file(d.root, "a")
			d.put(old, 0, "old")
			d.put(n, 0, "new")
			d.syncFile(old)
			d.syncFile(n)
			d.syncFolder(d.root)
			d.moveName(d.root, "a", d.root, "b")
		}, []string{"a=new b=new", "a=new b=old", "b=new"}},
		{"moved, the new folder synced", func(d disk) {
			old, to := d.folder(d.root, "old"), d.folder(d.root, "to")
			n := d.file(old, "a")
			d.syncFolder(d.root)
			d.syncFolder(old)
			d.syncFile(n)
			d.moveName(old, "a", to, "a")
			d.syncFolder(to)
		}, []string{"old old/a= to to/a=", "old to to/a="}},
		{"moved, the old folder synced", func(d disk) {
			old, to := d.folder(d.root, "old"), d.folder(d.root, "to")
			d.file(old, "a")
			d.syncFolder(d.root)
			d.syncFolder(old)
			d.moveName(old, "a", to, "a")
			d.syncFolder(old)
		}, []string{"old to to/a="}},
		{"folder not synced", func(d disk) {
			dir := d.folder(d.root, "d")
			d.syncFile(d.file(dir, "a"))
			d.syncFolder(dir)
		}, []string{"", "d d/a="}},
		{"two names", func(d disk) {
			n := d.file(d.root, "a")
			d.put(n, 0, "x")
			d.syncFile(n)
			d.rename(d.root, "b", n, nil)
			d.syncFolder(d.root)
		}, []string{"a=x b=x"}},
		{"cut short", func(d disk) {
			n := d.file(d.root, "a")
			d.put(n, 0, "xy")
			d.syncFile(n)
			d.syncFolder(d.root)
			d.truncate(n, 1)
		}, []string{"a=x", "a=x\x00", "a=xy"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDisk(t)
			tt.do(d)
			got := map[string]bool{}
			for outcome := range d.outcomesOf() {
				// What a disk had before at the place of new bytes is any byte.
				if i := strings.LastIndex(outcome, "="); i == len(outcome)-2 && !strings.Contains("xyz\x00", outcome[i+1:]) {
					outcome = outcome[:i+1] + "?"
				}
				got[outcome] = true
			}
			for outcome := range got {
				if !slices.Contains(tt.want, outcome) {
					t.Errorf("%q survives", outcome)
				}
			}
			for _, outcome := range tt.want {
				if !got[outcome] {
					t.Errorf("%q never survives", outcome)
				}
			}
		})
	}
}

// A write is torn at sectors, in any order, and never within one.
func TestTornWrites(t *testing.T) {
	const sectors = 6
	d := newDisk(t)
	n := d.file(d.root, "a")
	d.put(n, 0, strings.Repeat("o", sectors*sector))
	d.syncFile(n)
	d.syncFolder(d.root)
	d.put(n, 0, strings.Repeat("n", sectors*sector))
	patterns := map[string]bool{}
	for outcome := range d.outcomesOf() {
		content := strings.TrimPrefix(outcome, "a=")
		if len(content) != sectors*sector {
			t.Fatalf("%d bytes", len(content))
		}
		var pattern []byte
		for at := 0; at < len(content); at += sector {
			if content[at:at+sector] != strings.Repeat(content[at:at+1], sector) {
				t.Errorf("sector at %d is torn", at)
			}
			pattern = append(pattern, content[at])
		}
		patterns[string(pattern)] = true
	}
	if len(patterns) < 40 || !patterns["oooooo"] || !patterns["nnnnnn"] {
		t.Errorf("%d of 64 patterns: %v", len(patterns), patterns)
	}
}

// What is around a write that is lost stays.
func TestWritesLeaveTheRest(t *testing.T) {
	d := newDisk(t)
	n := d.file(d.root, "a")
	before := bytes.Repeat([]byte("0123456789"), 200)
	d.put(n, 0, string(before))
	d.syncFile(n)
	d.syncFolder(d.root)
	d.put(n, 700, "x")
	d.put(n, 1500, "y")
	d.put(n, int64(len(before)), "z")
	for outcome := range d.outcomesOf() {
		content := []byte(strings.TrimPrefix(outcome, "a="))
		if len(content) < len(before) {
			t.Fatalf("%d bytes", len(content))
		}
		content = content[:len(before)]
		for _, at := range []int{700, 1500} {
			if c := content[at]; c != before[at] && c != 'x' && c != 'y' {
				t.Errorf("%c at %d", c, at)
			}
			content[at] = before[at]
		}
		if !bytes.Equal(content, before) {
			t.Fatal("synced bytes are lost")
		}
	}
}

// The same seed gives the same outcome.
func TestSeeds(t *testing.T) {
	d := newDisk(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		d.put(d.file(d.root, name), 0, strings.Repeat(name, 3*sector))
	}
	if _, err := d.Survivors(0, t.TempDir()); err == nil {
		t.Error("something survives while the power is on")
	}
	d.Stop()
	for seed := range uint64(20) {
		one, two := t.TempDir(), t.TempDir()
		for _, dir := range []string{one, two} {
			if _, err := d.Survivors(seed, dir); err != nil {
				t.Fatal(err)
			}
		}
		if listing(t, one) != listing(t, two) {
			t.Errorf("seed %d gives two outcomes", seed)
		}
	}
}

// Whatever is done, what survives of a file that was synced at some time is built of values
// that its sectors had since, checked against a plain record of them.
func TestShuffledSectors(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		d := newDisk(t)
		n := d.file(d.root, "a")
		had := map[int]map[string]bool{} // of each sector
		sizes := map[int]bool{}
		record := func() {
			sizes[len(n.data)] = true
			padded := append(slices.Clone(n.data), make([]byte, 8*sector)...)
			for s := range 8 {
				if had[s] == nil {
					had[s] = map[string]bool{}
				}
				had[s][string(padded[s*sector:(s+1)*sector])] = true
			}
		}
		change := func() {
			if r.IntN(4) == 0 {
				d.truncate(n, r.Int64N(8*sector))
			} else {
				off := r.Int64N(7 * sector)
				d.put(n, off, strings.Repeat(string('a'+rune(r.IntN(26))), 1+r.IntN(sector)))
			}
		}
		for range r.IntN(5) {
			change()
		}
		d.syncFile(n)
		synced := len(n.synced)
		record()
		for range 1 + r.IntN(5) {
			change()
			record()
		}
		for range 20 {
			content := n.surviving(r)
			if len(content) > 0 && !sizes[len(content)] {
				t.Fatalf("size %d of %v", len(content), sizes)
			}
			for s := 0; s*sector < min(len(content), synced-synced%sector); s++ {
				part := content[s*sector : min(len(content), (s+1)*sector)]
				if !slices.ContainsFunc(slices.Collect(maps.Keys(had[s])), func(v string) bool { return v[:len(part)] == string(part) }) {
					t.Fatalf("sector %d has a value that it never had", s)
				}
			}
		}
	}
}
