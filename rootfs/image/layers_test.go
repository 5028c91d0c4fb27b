package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/store"
)

func statOf(t *testing.T, name string) (st unix.Stat_t) {
	t.Helper()
	must(t, unix.Lstat(name, &st))
	return st
}

// Images that begin with the same layers share them: they are fetched and unpacked once, and
// take the disk once. What an image changes of them, the others do not see.
func TestLayersAreShared(t *testing.T) {
	base := baseLayer(t, file("usr/lib/big", strings.Repeat("x", 1<<20)), file("etc/conf", "base"), file("old", "1"), link("l", "usr"))
	images := map[string]v1.Image{
		"a": makeImage(t, mainConfig, base, tarOf(t, file("app", "a"))),
		"b": makeImage(t, mainConfig, base, tarOf(t, file("app", "b"), file("etc/conf", "changed"), file(".wh.old", ""), file("l/x", "1"), hard("same", "usr/lib/big"))),
	}
	reg := newRegistry(t, nil)
	e := newEnv(t)
	trees := map[string]string{}
	for _, name := range []string{"a", "b"} {
		before := reg.blobs.Load()
		f, err := e.prepare(t, Options{Image: reg.pushImage(t, name+":1", images[name])})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]int32{"a": 3, "b": 2}[name] // the configuration and the layers that are new
		if n := reg.blobs.Load() - before; n != want {
			t.Errorf("%s: %d blobs were fetched, want %d", name, n, want)
		}
		for _, m := range f.Mounts {
			if m.Target == "/usr" {
				trees[name] = filepath.Dir(m.Sources[0])
			}
		}
	}
	if a, b := statOf(t, trees["a"]+"/usr/lib/big"), statOf(t, trees["b"]+"/usr/lib/big"); a.Ino != b.Ino || statOf(t, trees["b"]+"/same").Ino != a.Ino {
		t.Errorf("the base's file is there twice: %+v, %+v", a, b)
	}
	wantLines(t, without(listing(t, trees["a"]), "bin/sh", "usr/lib/big"), []string{"app = a", "bin/", "etc/", "etc/conf = base", "l -> usr", "main 0755 = #!/bin/sh\n", "old = 1", "usr/", "usr/lib/"})
	wantLines(t, without(listing(t, trees["b"]), "bin/sh", "usr/lib/big", "same"), []string{"app = b", "bin/", "etc/", "etc/conf = changed", "l -> usr", "main 0755 = #!/bin/sh\n", "usr/", "usr/lib/", "usr/x = 1"})
	r, err := e.store.Collect(t.Context(), store.Retention{Age: store.NoAge, Bytes: store.NoBytes})
	must(t, err)
	if got := store.Bytes(r.InUse); got > 1<<20+200<<10 || got < 1<<20 || len(r.InUse) != 5 {
		t.Errorf("%d entries are said to take %d bytes", len(r.InUse), got)
	}
}

func without(lines []string, names ...string) (rest []string) {
	for _, line := range lines {
		found := false
		for _, name := range names {
			found = found || strings.HasPrefix(line, name+" ")
		}
		if !found {
			rest = append(rest, line)
		}
	}
	return rest
}

// A layer is in use as long as an image with it is, also when the image was there already, and is
// removed no sooner than the image.
func TestLayersAreHeld(t *testing.T) {
	e := newEnv(t)
	given := writeLayout(t, indexOf(makeImage(t, mainConfig, baseLayer(t), tarOf(t, file("app", "a")))))
	for range 2 {
		f, err := e.prepare(t, Options{Image: given})
		if err != nil {
			t.Fatal(err)
		}
		e.wantInUse(t, 3)
		must(t, f.Close())
		e.wantInUse(t, 0)
	}
	r, err := e.store.Collect(t.Context(), store.Retention{Age: store.NoAge, Bytes: 0})
	must(t, err)
	if len(r.Removed) != 3 || r.Removed[0].Kind != store.KindImage {
		t.Errorf("removed are %+v, want the image first", r.Removed)
	}
}

// What a failed pull has brought whole is not fetched again, and a layer that is damaged is.
func TestLayersOfAFailedPull(t *testing.T) {
	good, bad := baseLayer(t), tarOf(t, file("app", "a"))
	img := makeImage(t, mainConfig, good, bad)
	layout := writeLayout(t, indexOf(img))
	m, err := img.Manifest()
	must(t, err)
	blob := filepath.Join(layout, "blobs/sha256", m.Layers[1].Digest.Hex)
	data := readFile(t, blob)
	must(t, os.WriteFile(blob, bytes.Repeat([]byte{1}, len(data)), 0o644))
	e := newEnv(t)
	if _, err := e.prepare(t, Options{Image: layout}); err == nil {
		t.Fatal("a damaged layer was taken")
	}
	if layers, trees := e.entries(t, store.KindLayer), e.trees(t); len(layers) != 1 || len(trees) != 0 {
		t.Fatalf("layers %q, trees %q", layers, trees)
	}
	must(t, os.WriteFile(blob, data, 0o644))
	must(t, os.Remove(filepath.Join(layout, "blobs/sha256", m.Layers[0].Digest.Hex))) // it is not needed any more
	f, err := e.prepare(t, Options{Image: layout})
	if err != nil {
		t.Fatal(err)
	}
	must(t, f.Close())
	damaged := 0
	for _, dir := range e.entries(t, store.KindLayer) {
		if app := filepath.Join(dir, addFolder, "app"); os.Truncate(app, 0) == nil { // and so the image's
			damaged++
		}
	}
	if _, err = e.prepare(t, Options{Image: layout}); err != nil { // of the first layer, which is whole, nothing is read
		t.Fatal(err)
	}
	if text := readFile(t, filepath.Join(e.trees(t)[0], "app")); string(text) != "a" || damaged != 1 {
		t.Errorf("got %q, %d layers were damaged", text, damaged)
	}
}

// A process that a layer has taken over cannot change what other images have: a layer is
// unpacked by a process of its own, under the name of the layers up to it.
func TestLayersAreNotPoisoned(t *testing.T) {
	base := baseLayer(t, file("lib", "good"))
	e := newEnv(t)
	evil := func(given string) error {
		_, err := e.prepare(t, Options{Image: given, Unpack: func(ctx context.Context, job UnpackJob, layer, tree *os.File) error {
			if job.Layer == 1 {
				return job.Run(ctx, layer, tree)
			}
			path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(tree.Fd())))
			_, rerr := io.Copy(io.Discard, layer)
			return errors.Join(err, rerr, folders(path), os.Symlink("lib", filepath.Join(path, "hide/1")), os.WriteFile(filepath.Join(path, "add/lib"), []byte("bad"), 0o644))
		}})
		return err
	}
	if err := evil(writeLayout(t, indexOf(makeImage(t, mainConfig, base, tarOf(t, file("evil", "x")))))); err != nil {
		t.Fatal(err)
	}
	f, err := e.prepare(t, Options{Image: writeLayout(t, indexOf(makeImage(t, mainConfig, base)))})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range f.Mounts {
		if m.Target == "/lib" && string(readFile(t, m.Sources[0])) != "good" {
			t.Error("the base has changed")
		}
	}
	for _, dir := range e.entries(t, store.KindLayer) {
		if _, err := os.Stat(filepath.Join(dir, addFolder, "bin/sh")); err == nil && string(readFile(t, filepath.Join(dir, addFolder, "lib"))) != "good" {
			t.Error("the layer has changed")
		}
	}
}

// A file of a shared layer that has as many names as the file system allows, which another image
// may have given it, is copied once.
func TestNamesOfSharedFiles(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	must(t, err)
	defer dir.Close()
	fd := int(dir.Fd())
	must(t, os.WriteFile(filepath.Join(dir.Name(), "f"), []byte("base"), 0o640))
	must(t, os.Chtimes(filepath.Join(dir.Name(), "f"), time.Time{}, time.Unix(1, 0)))
	for n := 0; err == nil; n++ {
		if n > 70_000 {
			return // such as XFS, where nothing is ever copied
		}
		err = unix.Linkat(fd, "f", fd, strconv.Itoa(n), 0)
	}
	if !errors.Is(err, unix.EMLINK) {
		t.Fatal(err)
	}
	links := newLinker()
	defer links.close()
	for _, name := range []string{"a", "b", "c"} {
		must(t, links.link(dir, "f", dir, name))
		if err := links.link(dir, "f", dir, name); !errors.Is(err, unix.EEXIST) {
			t.Errorf("a name that is taken: %v", err)
		}
	}
	if err := links.link(dir, "none", dir, "d"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no file: %v", err)
	}
	a, c := statOf(t, filepath.Join(dir.Name(), "a")), statOf(t, filepath.Join(dir.Name(), "c"))
	if a.Ino != c.Ino || a.Ino == statOf(t, filepath.Join(dir.Name(), "f")).Ino || a.Mode&0o7777 != 0o640 || a.Mtim.Sec != 1 || string(readFile(t, filepath.Join(dir.Name(), "a"))) != "base" {
		t.Errorf("copy %+v, its other name %+v", a, c)
	}
}
