package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzLayer unpacks what it is given as a layer, over a first one that has something
// of each kind. Whatever comes: nothing changes around the tree, the tree holds nothing
// but plain directories, files and links, the disk has what the unpacker believes it
// has, and the daemon's user can remove it all.
func FuzzLayer(f *testing.F) {
	first := []entry{dir("usr/lib"), link("lib", "usr/lib"), link("out", "../../.."), link("abs", "/"), file("usr/a", "1"), hard("usr/b", "usr/a"), dirMode("shut", 0)}
	lower := tarOf(f, first...)
	for _, seed := range [][]entry{
		first,
		{file("lib/x", "1"), file("out/secret", "2"), file("abs/y", "3")},
		{file(".wh.usr", ""), file("usr/new", "1"), hard("z", "usr/new")},
		{file("usr/.wh..wh..opq", ""), file("usr/.wh.b", ""), file(".wh..", "")},
		{device("lib", tar.TypeChar), device("p", tar.TypeFifo), fileMode("s", 0o7777, "1")},
		{file("../secret", ""), hard("h", "out/secret"), link("usr", "/etc"), file("usr/passwd", "x")},
		{hard("usr", "usr/a"), hard("lib", "usr/b"), link("l1", "l2"), link("l2", "l1"), file("l1/x", "")},
	} {
		f.Add(tarOf(f, seed...))
		f.Add(gzipped(f, tarOf(f, seed...)))
	}
	f.Add(sparseFile(100_000))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("host"), 0o644))
		tree := filepath.Join(outside, "tree")
		must(t, os.Mkdir(tree, 0o755))
		root, err := os.OpenRoot(tree)
		must(t, err)
		defer root.Close()
		for n, l := range [][]byte{lower, data} {
			fuzzLayer(t, filepath.Join(outside, "layer"), root, n+1, l)
		}
		must(t, os.RemoveAll(tree))
		wantLines(t, listing(t, outside), []string{"secret = host"})
	})
}

// fuzzLayer unpacks a layer to the folder dir, and applies it to the tree, if it is not refused.
func fuzzLayer(t *testing.T, dir string, tree *os.Root, number int, data []byte) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	defer os.RemoveAll(dir)
	layerRoot, err := os.OpenRoot(dir)
	must(t, err)
	defer layerRoot.Close()
	job := UnpackJob{Image: "fuzz", Layer: number, Limits: Limits{Bytes: 8 << 20, Entries: 500}}
	u, err := newUnpacker(job, layerRoot)
	must(t, err)
	defer u.root.Close()
	var known bytes.Buffer
	must(t, sendLower(&known, tree))
	must(t, u.readLower(&known))
	left := u.limits.Bytes
	from, to := io.Pipe()
	go func() {
		r := &layerReader{image: &image{given: "fuzz"}, number: number, count: func(int64) {}, layer: layer{size: int64(len(data)), open: opener(data)}}
		to.CloseWithError(r.each(t.Context(), func(p []byte) error {
			if left -= int64(len(p)); left < 0 {
				return errors.New("too many bytes")
			}
			_, err := to.Write(p)
			return err
		}))
	}()
	refused := u.applyLayer(t.Context(), from)
	from.CloseWithError(errGone)
	if errors.As(refused, new(*hostError)) && !errors.Is(refused, unix.EMLINK) {
		t.Errorf("the unpacker asked the host for something impossible: %v", refused)
	}
	must(t, u.finish())
	if u.bytes > u.limits.Bytes+int64(len(u.buf)) || u.entries > u.limits.Entries+1 {
		t.Errorf("%d bytes and %d entries", u.bytes, u.entries)
	}
	compare(t, filepath.Join(dir, addFolder), u.top)
	if refused != nil {
		return
	}
	if _, err := job.bounds().Adopt(layerRoot); err != nil {
		t.Errorf("what was unpacked is not taken over: %v", err)
	}
	if err := merge(layerRoot, tree); err != nil {
		t.Errorf("what was unpacked cannot be applied: %v", err)
	}
	wantMerged(t, tree.Name(), u.top)
}

// wantMerged wants that a directory has what the unpacker has noted, and nothing else.
func wantMerged(t *testing.T, dir string, n *node) {
	t.Helper()
	compare(t, dir, n)
	list, err := os.ReadDir(dir)
	must(t, err)
	if len(list) != len(n.children) {
		t.Errorf("%s has %d files, noted are %d", dir, len(list), len(n.children))
	}
	for _, d := range list {
		if c := n.children[d.Name()]; c != nil && c.isDir() && d.IsDir() {
			wantMerged(t, filepath.Join(dir, d.Name()), c)
		}
	}
}

// compare compares a directory with what the unpacker has noted of it. Where an entry
// failed half-way the note may be of something that is not there.
func compare(t *testing.T, dir string, n *node) {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, d := range list {
		path := filepath.Join(dir, d.Name())
		c := n.children[d.Name()]
		if c == nil {
			t.Errorf("%s is unknown", path)
			continue
		}
		info, err := os.Lstat(path)
		must(t, err)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			must(t, err)
			if target != c.target {
				t.Errorf("%s leads to %q, noted is %q", path, target, c.target)
			}
		case info.IsDir():
			if !c.isDir() || info.Mode() != fs.ModeDir|c.perm|0o700 {
				t.Errorf("%s is a directory of mode %v, noted is %+v", path, info.Mode(), c)
				continue
			}
			compare(t, path, c)
		case info.Mode().IsRegular():
			if c.isDir() || c.isLink() || info.Mode() != info.Mode().Perm() {
				t.Errorf("%s is a file of mode %v, noted is %+v", path, info.Mode(), c)
			}
		default:
			t.Errorf("%s is %v", path, info.Mode())
		}
	}
}

// FuzzArchive opens what it is given as an archive: it is refused, or the files found
// lie within it.
func FuzzArchive(f *testing.F) {
	f.Add(tarOf(f, file("manifest.json", `[{"Config":"c","Layers":["a","b"]}]`), file("c", "{}"), file("a", ""), link("b", "a")))
	f.Add(tarOf(f, file("index.json", `{"schemaVersion":2,"manifests":[{"digest":"sha256:`+strings.Repeat("0", 64)+`","size":1}]}`), file("blobs/sha256/"+strings.Repeat("0", 64), "x")))
	f.Add(sparseFile(1000))
	f.Add(gzipped(f, sparseFile(1000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "a.tar")
		must(t, os.WriteFile(path, data, 0o600))
		archive, err := openArchive(path)
		must(t, err)
		defer archive.Close()
		spool, err := os.CreateTemp(t.TempDir(), "")
		must(t, err)
		defer spool.Close()
		_, _ = ReadJob{Image: path, Arch: "amd64", Source: Archive, Spool: 1 << 20}.open(t.Context(), nil, archive, spool)
		if info, err := spool.Stat(); err != nil || info.Size() > 1<<20+1 {
			t.Errorf("%v, %v", info, err)
		}
		_, err = archive.Seek(0, io.SeekStart)
		must(t, err)
		in, err := listArchive(t.Context(), path, archive)
		if err != nil {
			return
		}
		a := in.(*archiveFiles)
		for name, e := range a.at {
			if e.start < 0 || e.size < 0 || e.start+e.size > int64(len(data)) {
				t.Errorf("%q lies at %+v of %d bytes", name, e, len(data))
			}
		}
		for name := range a.same {
			rc, size, err := in.open(name)
			if err != nil {
				continue
			}
			var b bytes.Buffer
			if n, err := b.ReadFrom(rc); n != size || err != nil {
				t.Errorf("%q has %d bytes, not %d: %v", name, n, size, err)
			}
		}
	})
}
