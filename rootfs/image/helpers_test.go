package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/store"
)

// entry is one entry of a layer. What it holds is body, unless the header says more.
type entry struct {
	hdr  tar.Header
	body string
}

func file(name, body string) entry { return fileMode(name, 0o644, body) }

func fileMode(name string, mode int64, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(body))}, body}
}

func dir(name string) entry { return dirMode(name, 0o755) }

func dirMode(name string, mode int64) entry {
	return entry{hdr: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}}
}

func link(name, target string) entry {
	return entry{hdr: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}}
}

func hard(name, target string) entry {
	return entry{hdr: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

func device(name string, kind byte) entry {
	return entry{hdr: tar.Header{Name: name, Typeflag: kind, Mode: 0o666, Devmajor: 1, Devminor: 3}}
}

// tarOf is the stream of a layer.
func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.hdr.ModTime.IsZero() {
			e.hdr.ModTime = time.Unix(1_600_000_000, 0)
		}
		if err := w.WriteHeader(&e.hdr); err != nil {
			t.Fatalf("%s: %v", e.hdr.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatalf("%s: %v", e.hdr.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// makeImage makes an image of these layers for the host's architecture.
func makeImage(t testing.TB, cfg v1.Config, layers ...[]byte) v1.Image {
	t.Helper()
	return imageFor(t, runtime.GOARCH, cfg, layers...)
}

func imageFor(t testing.TB, arch string, cfg v1.Config, layers ...[]byte) v1.Image {
	t.Helper()
	var list []v1.Layer
	for _, l := range layers {
		list = append(list, plainLayer(l))
	}
	img, err := mutate.AppendLayers(empty.Image, list...)
	if err == nil {
		img, err = mutate.ConfigFile(img, withConfig(t, img, arch, cfg))
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// plainLayer is a layer without compression.
func plainLayer(data []byte) v1.Layer { return static.NewLayer(data, types.OCIUncompressedLayer) }

func withConfig(t testing.TB, img v1.Image, arch string, cfg v1.Config) *v1.ConfigFile {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", arch, cfg
	return c
}

// shell is the beginning of a program of this host, which is all that is looked at.
func shell(t testing.TB) string {
	t.Helper()
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 256)
	if _, err := io.ReadFull(f, head); err != nil {
		t.Fatal(err)
	}
	return string(head)
}

// baseLayer has what the smallest function needs.
func baseLayer(t testing.TB, more ...entry) []byte {
	return tarOf(t, append([]entry{dir("bin/"), fileMode("bin/sh", 0o755, shell(t)), fileMode("main", 0o755, "#!/bin/sh\n")}, more...)...)
}

var mainConfig = v1.Config{Entrypoint: []string{"/main"}}

// env is where a test prepares images.
type env struct {
	store          *store.Store
	state, scratch string
}

func newEnv(t testing.TB) *env {
	t.Helper()
	state := t.TempDir()
	store, err := store.Open(state)
	if err != nil {
		t.Fatal(err)
	}
	return &env{store: store, state: state, scratch: t.TempDir()}
}

// prepare prepares an image, and makes sure that a failure leaves nothing.
func (e *env) prepare(t testing.TB, opts Options) (*Function, error) {
	t.Helper()
	opts.Store, opts.Scratch = e.store, e.scratch
	before, held := listing(t, e.scratch), e.inUse(t)
	f, err := Prepare(t.Context(), opts)
	if staged := listing(t, filepath.Join(e.state, "staging")); len(staged) > 0 {
		t.Errorf("staging holds %q", staged)
	}
	if err != nil {
		wantLines(t, listing(t, e.scratch), before)
		e.wantInUse(t, held)
	}
	return f, err
}

// inUse counts the entries of the store that are in use.
func (e *env) inUse(t testing.TB) int {
	t.Helper()
	r, err := e.store.Collect(t.Context(), store.Retention{Age: store.NoAge, Bytes: store.NoBytes})
	if err != nil {
		t.Error(err)
	}
	return len(r.InUse)
}

// wantInUse wants that so many entries of the store are in use.
func (e *env) wantInUse(t testing.TB, want int) {
	t.Helper()
	if got := e.inUse(t); got != want {
		t.Errorf("%d entries are in use, want %d", got, want)
	}
}

// trees are the trees of images that the store holds.
func (e *env) trees(t testing.TB) []string { return e.entries(t, store.KindImage) }

// entries are the trees of the store's entries of a kind.
func (e *env) entries(t testing.TB, kind store.Kind) (list []string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(e.state, "sha256", "*", "entry.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if bytes.Contains(readFile(t, name), []byte(`"kind":"`+kind+`"`)) {
			list = append(list, filepath.Join(filepath.Dir(name), "tree"))
		}
	}
	return list
}

// listing describes everything below a directory, one line a file: its path, its
// permissions unless they are the usual ones, and what it holds.
func listing(t testing.TB, root string) []string {
	t.Helper()
	lines := []string{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		line, err := describe(root, name, d)
		lines = append(lines, line)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func describe(root, name string, d fs.DirEntry) (string, error) {
	rel, err := filepath.Rel(root, name)
	if err != nil {
		return "", err
	}
	info, err := d.Info()
	if err != nil {
		return "", err
	}
	switch usual := fs.FileMode(0o644); {
	case d.IsDir():
		if info.Mode() != fs.ModeDir|0o755 {
			return fmt.Sprintf("%s/ %04o", rel, info.Mode().Perm()), nil
		}
		return rel + "/", nil
	case d.Type() == fs.ModeSymlink:
		target, err := os.Readlink(name)
		return rel + " -> " + target, err
	case d.Type() != 0:
		return rel + " " + d.Type().String(), nil
	default:
		body, err := os.ReadFile(name)
		if len(body) > 20 {
			body = fmt.Appendf(body[:20:20], "…%d", len(body))
		}
		if info.Mode() != usual {
			return fmt.Sprintf("%s %04o = %s", rel, unixMode(info.Mode()), body), err
		}
		return fmt.Sprintf("%s = %s", rel, body), err
	}
}

func unixMode(m fs.FileMode) uint32 {
	perm := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		perm |= unix.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		perm |= unix.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		perm |= unix.S_ISVTX
	}
	return perm
}

func wantLines(t testing.TB, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}
