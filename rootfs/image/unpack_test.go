package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// unpackAll has layers, which are tar streams, unpacked to root.
func unpackAll(t testing.TB, root *os.Root, limits Limits, layers ...[]byte) error {
	t.Helper()
	img := &image{given: "test.tar", config: &v1.ConfigFile{}}
	d := &description{}
	for _, data := range layers {
		diffID, _, err := v1.SHA256(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		img.layers = append(img.layers, layer{diffID: diffID, size: -1, open: opener(data)})
		d.Layers = append(d.Layers, layerClaim{DiffID: diffID, Size: -1})
	}
	r := reads(t, func(ctx context.Context, c *net.UnixConn) error {
		for n := range img.layers {
			if err := img.sendLayer(ctx, c, n); err != nil {
				return err
			}
		}
		return nil
	})
	_, refs, err := r.unpack(t.Context(), d, root, Options{Image: img.given, Limits: limits, Store: newEnv(t).store})
	return errors.Join(err, refs.Close())
}

// reads is a reading of which the other side does that.
func reads(t testing.TB, other func(context.Context, *net.UnixConn) error) *reading {
	t.Helper()
	return readsOf(t, Options{Image: t.TempDir()}, other)
}

func readsOf(t testing.TB, opts Options, other func(context.Context, *net.UnixConn) error) *reading {
	t.Helper()
	opts.Read = played(other)
	r, err := read(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.stop)
	return r
}

// unpackTo unpacks layers into a new directory within outside.
func unpackTo(t testing.TB, outside string, limits Limits, layers ...[]byte) (string, error) {
	t.Helper()
	tree := filepath.Join(outside, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return tree, unpackAll(t, root, limits.withDefaults(), layers...)
}

func TestLayers(t *testing.T) {
	for _, test := range []struct {
		name   string
		layers [][]entry
		want   []string
	}{
		{"later layers win", [][]entry{{file("a", "1"), file("b", "1")}, {file("a", "22")}}, []string{"a = 22", "b = 1"}},
		{"later entries win", [][]entry{{file("a", "11"), file("a", "2"), dir("d"), file("d", "file")}}, []string{"a = 2", "d = file"}},
		{"missing directories are made", [][]entry{{file("a/b/c", "1")}}, []string{"a/", "a/b/", "a/b/c = 1"}},
		{"directories merge, the last mode counts", [][]entry{{dirMode("d", 0o700), file("d/a", "1")}, {dirMode("d/", 0o750), file("./d/b", "2")}},
			[]string{"d/ 0750", "d/a = 1", "d/b = 2"}},
		{"a directory that its owner may not enter", [][]entry{{dirMode("d", 0), file("d/a", "1")}}, []string{"d/ 0700", "d/a = 1"}},
		{"a file takes a directory's place", [][]entry{{file("d/a/b", "1")}, {file("d", "2")}}, []string{"d = 2"}},
		{"a directory takes a link's place", [][]entry{{file("real/a", "1"), link("d", "real")}, {dir("d"), file("d/b", "2")}},
			[]string{"d/", "d/b = 2", "real/", "real/a = 1"}},
		{"set-id and sticky bits go", [][]entry{{fileMode("s", 0o6755, "1"), dirMode("d", 0o7777)}}, []string{"d/ 0777", "s 0755 = 1"}},
		{"devices and pipes are left out", [][]entry{{device("c", tar.TypeChar), device("dev/b", tar.TypeBlock), device("p", tar.TypeFifo)}}, []string{"dev/"}},
		{"a device hides a file", [][]entry{{file("c", "1")}, {device("c", tar.TypeChar)}}, []string{}},
		{"names that a shell would mind", [][]entry{{file("a\\x2db", "1"), file("*", "2"), file(" ", "3"), file("A", "4"), file("a", "5")}},
			[]string{"  = 3", "* = 2", "A = 4", "a = 5", "a\\x2db = 1"}},
		{"absolute names", [][]entry{{file("/etc/a", "1"), file("//b", "2")}}, []string{"b = 2", "etc/", "etc/a = 1"}},

		{"hard link", [][]entry{{file("a", "1"), hard("d/b", "a")}, {hard("c", "./d/b")}}, []string{"a = 1", "c = 1", "d/", "d/b = 1"}},
		{"hard link to itself", [][]entry{{file("a", "1"), hard("a", "a")}}, []string{"a = 1"}},
		{"hard link to a link", [][]entry{{link("a", "/etc/shadow"), hard("b", "a")}}, []string{"a -> /etc/shadow", "b -> /etc/shadow"}},
		{"through a hard link to a link", [][]entry{{dir("d"), link("a", "d"), hard("b", "a"), file("b/x", "1")}}, []string{"a -> d", "b -> d", "d/", "d/x = 1"}},
		{"a new file leaves the hard-linked one alone", [][]entry{{file("a", "1"), hard("b", "a")}, {file("b", "changed")}}, []string{"a = 1", "b = changed"}},

		{"a file takes a link's place", [][]entry{{file("a", "1"), link("b", "a")}, {file("b", "2")}}, []string{"a = 1", "b = 2"}},
		{"links on the way are those of the image", [][]entry{{dir("usr/lib"), link("lib", "usr/lib"), link("abs", "/usr"), link("up", "../../..")},
			{file("lib/a", "1"), file("abs/b", "2"), file("up/c", "3")}},
			[]string{"abs -> /usr", "c = 3", "lib -> usr/lib", "up -> ../../..", "usr/", "usr/b = 2", "usr/lib/", "usr/lib/a = 1"}},
		{"a dangling link on the way", [][]entry{{link("run", "/var/run")}, {file("run/a", "1")}}, []string{"run -> /var/run", "var/", "var/run/", "var/run/a = 1"}},

		{"whiteout of a file", [][]entry{{file("d/a", "1"), file("d/b", "1")}, {file("d/.wh.a", "")}}, []string{"d/", "d/b = 1"}},
		{"whiteout of a directory", [][]entry{{file("d/e/a", "1"), file("d/b", "1")}, {file("d/.wh.e", "")}}, []string{"d/", "d/b = 1"}},
		{"whiteout of a link, not of its target", [][]entry{{file("d/a", "1"), link("l", "d")}, {file(".wh.l", "")}}, []string{"d/", "d/a = 1"}},
		{"whiteout of nothing there", [][]entry{{file("a", "1")}, {file(".wh.b", ""), file("no/such/.wh.c", "")}}, []string{"a = 1"}},
		{"whiteout through a link stays inside", [][]entry{{file("d/a", "1"), link("l", "/d"), link("out", "../../outside")}, {file("l/.wh.a", ""), file("out/.wh.secret", "")}},
			[]string{"d/", "l -> /d", "out -> ../../outside"}},
		{"whiteouts hide lower layers only", [][]entry{{file("a", "1"), file("d/a", "1"), file("d/old", "1")},
			{file("a", "2"), file(".wh.a", ""), file("d/new", "2"), file(".wh.d", "")}}, []string{"a = 2", "d/", "d/new = 2"}},
		{"whiteout before its replacement", [][]entry{{file("d/a", "1")}, {file(".wh.d", ""), file("d/b", "2")}}, []string{"d/", "d/b = 2"}},
		{"opaque directory", [][]entry{{file("d/a", "1"), file("d/e/f", "1"), file("x", "1")}, {dir("d"), file("d/.wh..wh..opq", ""), file("d/b", "2")}},
			[]string{"d/", "d/b = 2", "x = 1"}},
		{"opaque directory, told last", [][]entry{{file("d/a", "1"), file("d/e/f", "1")}, {file("d/b", "2"), file("d/e/g", "2"), file("d/.wh..wh..opq", "")}},
			[]string{"d/", "d/b = 2", "d/e/", "d/e/g = 2"}},
		{"opaque top", [][]entry{{file("a", "1")}, {file(".wh..wh..opq", ""), file("b", "2")}}, []string{"b = 2"}},
		{"hidden twice, with more between", [][]entry{{file("d/a", "1"), file("d/e/f", "1")}, {file("d/e/g", "2"), file(".wh.d", ""), file("d/b", "2"), file("d/.wh..wh..opq", ""), file("d/.wh.b", "")}},
			[]string{"d/", "d/b = 2", "d/e/", "d/e/g = 2"}},
		{"hidden in two layers", [][]entry{{file("d/a", "1")}, {file("d/.wh..wh..opq", ""), file("d/b", "2")}, {file("d/.wh..wh..opq", ""), file("d/c", "3")}}, []string{"d/", "d/c = 3"}},
		{"a file again after a whiteout", [][]entry{{file("a", "1")}, {file(".wh.a", "")}, {file("a", "3")}}, []string{"a = 3"}},
		{"marks of old union file systems", [][]entry{{file("a", "1")}, {file(".wh..wh.plnk/12.34", "x"), file(".wh..wh.aufs", "x"), file("d/.wh..wh.orph/y", "")}}, []string{"a = 1"}},
		{"names that only look like whiteouts", [][]entry{{file("wh.a", "1"), file(".wha", "2"), file("..wh.a", "3")}}, []string{"..wh.a = 3", ".wha = 2", "wh.a = 1"}},
		{"whiteout of a name with dots", [][]entry{{file("...", "1"), file("..a", "1")}, {file(".wh....", ""), file(".wh...a", "")}}, []string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			outside := t.TempDir()
			var layers [][]byte
			for _, l := range test.layers {
				layers = append(layers, tarOf(t, l...))
			}
			tree, err := unpackTo(t, outside, Limits{}, layers...)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(test.want)
			wantLines(t, listing(t, tree), test.want)
		})
	}
}

// TestHostileLayers (security requirements, Archives): each is refused with a clear
// error, and what lies around the tree is as it was.
func TestHostileLayers(t *testing.T) {
	sparse := tarOf(t, file("x", ""))
	long := strings.Repeat("n", 300)
	for _, test := range []struct {
		name   string
		layers [][]byte
		limits Limits
		kind   error
	}{
		{name: "parent", layers: [][]byte{tarOf(t, file("../secret", "x"))}, kind: invalid.ErrUnsafe},
		{name: "parent in the middle", layers: [][]byte{tarOf(t, file("a/../../secret", "x"))}, kind: invalid.ErrUnsafe},
		{name: "hard link to the host", layers: [][]byte{tarOf(t, hard("a", "/etc/passwd"))}, kind: invalid.ErrUnsafe},
		{name: "hard link to a parent", layers: [][]byte{tarOf(t, hard("a", "../secret"))}, kind: invalid.ErrUnsafe},
		{name: "hard link through a link", layers: [][]byte{tarOf(t, link("out", "../.."), hard("a", "out/secret"))}, kind: invalid.ErrUnsafe},
		{name: "hard link to a directory", layers: [][]byte{tarOf(t, dir("d"), hard("a", "d"))}, kind: invalid.ErrUnsafe},
		{name: "hard link to what comes later", layers: [][]byte{tarOf(t, hard("a", "b"), file("b", ""))}, kind: invalid.ErrUnsafe},
		{name: "hard link to what a whiteout hid", layers: [][]byte{tarOf(t, file("b", "")), tarOf(t, file(".wh.b", ""), hard("a", "b"))}, kind: invalid.ErrUnsafe},
		{name: "hard link over its target's directory", layers: [][]byte{tarOf(t, file("d/b", ""), hard("d", "d/b"))}, kind: invalid.ErrUnsafe},
		{name: "below a file", layers: [][]byte{tarOf(t, file("a", ""), file("a/b", ""))}, kind: invalid.ErrUnsafe},
		{name: "link loop", layers: [][]byte{tarOf(t, link("a", "b"), link("b", "a"), file("a/x", ""))}, kind: invalid.ErrUnsafe},
		{name: "link that grows", layers: [][]byte{tarOf(t, link("a", "a/"+strings.Repeat("x/", 1900)), file("a/x", ""))}, kind: invalid.ErrUnsafe},
		{name: "empty link", layers: [][]byte{tarOf(t, link("a", ""))}, kind: invalid.ErrUnsafe},
		{name: "whiteout of nothing", layers: [][]byte{tarOf(t, file(".wh.", ""))}, kind: invalid.ErrUnsafe},
		{name: "whiteout of itself", layers: [][]byte{tarOf(t, file("d/.wh..", ""))}, kind: invalid.ErrUnsafe},
		{name: "whiteout of the parent", layers: [][]byte{tarOf(t, file("d/.wh...", ""))}, kind: invalid.ErrUnsafe},
		{name: "below a whiteout", layers: [][]byte{tarOf(t, file(".wh.d/x", ""))}, kind: invalid.ErrUnsafe},
		{name: "the top as a link", layers: [][]byte{tarOf(t, link("./", "/"))}, kind: invalid.ErrUnsafe},
		{name: "long component", layers: [][]byte{tarOf(t, file(long, ""))}, kind: invalid.ErrUnsafe},
		{name: "long name", layers: [][]byte{tarOf(t, file(strings.Repeat("n/", 3000)+"n", ""))}, kind: invalid.ErrUnsafe},
		{name: "1500 directories", layers: [][]byte{tarOf(t, file(strings.Repeat("d/", 1500)+"f", ""))}, kind: invalid.ErrUnsafe},
		{name: "depth by links", layers: [][]byte{tarOf(t, dir(strings.Repeat("d/", 150)), link("l", strings.Repeat("d/", 150)),
			file("l/"+strings.Repeat("e/", 100)+"f", ""))}, kind: invalid.ErrUnsafe},
		{name: "unknown type", layers: [][]byte{rewrite(sparse, func(h []byte) { h[156] = 'Z' })}, kind: invalid.ErrUnsafe},
		{name: "giant PAX header", layers: [][]byte{giantPAX()}, kind: invalid.ErrImage},
		{name: "sparse 1 TiB", layers: [][]byte{sparseFile(1 << 40)}, kind: invalid.ErrTooLarge},
		{name: "declared 1 TiB", layers: [][]byte{rewrite(tarOf(t, file("x", "x")), func(h []byte) { putSize(h, 1<<40) })}, kind: invalid.ErrTooLarge},
		{name: "declared more than there is", layers: [][]byte{rewrite(tarOf(t, file("x", "x")), func(h []byte) { putSize(h, 4096) })}, kind: invalid.ErrImage},
		{name: "files over the limit", layers: [][]byte{sparseFile(900), sparseFile(200)}, limits: Limits{Bytes: 1000}, kind: invalid.ErrTooLarge},
		{name: "stream over the limit", layers: [][]byte{bytes.Repeat(tarOf(t), 64)}, limits: Limits{Bytes: 50_000}, kind: invalid.ErrTooLarge},
		{name: "gzip bomb", layers: [][]byte{gzipped(t, bytes.Repeat(tarOf(t), 1000))}, limits: Limits{Bytes: 500_000}, kind: invalid.ErrTooLarge},
		{name: "entries", layers: [][]byte{tarOf(t, file("a", ""), file("b", "")), tarOf(t, file(".wh.a", ""))}, limits: Limits{Entries: 2}, kind: invalid.ErrTooLarge},
		{name: "implied directories count", layers: [][]byte{tarOf(t, file("a/b/c/d", ""))}, limits: Limits{Entries: 3}, kind: invalid.ErrTooLarge},
		{name: "no tar", layers: [][]byte{bytes.Repeat([]byte("junk"), 500)}, kind: invalid.ErrImage},
		{name: "cut gzip", layers: [][]byte{gzipped(t, tarOf(t, file("a", "1")))[:60]}, kind: invalid.ErrImage},
		{name: "cut zstd", layers: [][]byte{{0x28, 0xb5, 0x2f, 0xfd, 0x01}}, kind: invalid.ErrImage},
	} {
		t.Run(test.name, func(t *testing.T) {
			outside := t.TempDir()
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("host"), 0o644); err != nil {
				t.Fatal(err)
			}
			tree, err := unpackTo(t, outside, test.limits, test.layers...)
			if !errors.Is(err, test.kind) {
				t.Errorf("got %v, want kind %v", err, test.kind)
			}
			if err := os.RemoveAll(tree); err != nil {
				t.Fatal(err)
			}
			wantLines(t, listing(t, outside), []string{"secret = host"})
		})
	}
}

// TestMetadataIsDropped: no extended attribute of a layer reaches the disk, neither a
// file capability nor overlay's own; of the times the modification time does.
func TestMetadataIsDropped(t *testing.T) {
	old := time.Unix(1_500_000_000, 0)
	e := fileMode("x", 0o755, "1")
	e.hdr.ModTime, e.hdr.Uid, e.hdr.Gid, e.hdr.Format = old, 12345, 54321, tar.FormatPAX
	e.hdr.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability":     "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.trusted.overlay.opaque":  "y",
		"SCHILY.xattr.user.overlay.opaque":     "y",
		"SCHILY.xattr.user.note":               "z",
		"LIBARCHIVE.xattr.security.capability": "AQAAAgAEAAAAAAAAAAAAAAAAAAA=",
	}
	far := file("far", "")
	far.hdr.ModTime, far.hdr.Format = time.Unix(1<<50, 0), tar.FormatPAX
	tree, err := unpackTo(t, t.TempDir(), Limits{}, tarOf(t, e, far))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(tree, "x"), &st); err != nil {
		t.Fatal(err)
	}
	if int(st.Uid) != os.Getuid() || int(st.Gid) != os.Getgid() || st.Mtim.Sec != old.Unix() {
		t.Errorf("owner is %d:%d and time %d", st.Uid, st.Gid, st.Mtim.Sec)
	}
	n, err := unix.Llistxattr(filepath.Join(tree, "x"), nil)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	if n != 0 {
		t.Errorf("%d bytes of extended attributes", n)
	}
}

// TestGiantIsInterrupted: a file of zeros that cost no input is not written once the
// context has ended.
func TestGiantIsInterrupted(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	giant := tar.NewReader(bytes.NewReader(sparseFile(5 << 30)))
	hdr, err := giant.Next()
	if err != nil {
		t.Fatal(err)
	}
	u, err := newUnpacker(UnpackJob{Image: "test", Limits: Limits{}.withDefaults()}, root)
	if err != nil {
		t.Fatal(err)
	}
	defer u.root.Close()
	if err := u.apply(ctx, hdr, giant); !errors.Is(err, context.Canceled) || u.bytes > 0 {
		t.Errorf("got %v after %d bytes", err, u.bytes)
	}
}

// rewrite changes the first header of a tar and corrects its checksum.
func rewrite(data []byte, change func(header []byte)) []byte {
	data = bytes.Clone(data)
	h := data[:512]
	change(h)
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

// putSize writes a size in the base-256 form.
func putSize(h []byte, n uint64) {
	h[124] = 0x80
	for i := 135; i > 124; i-- {
		h[i] = byte(n)
		n >>= 8
	}
}

// rawHeader is a header that archive/tar would not write.
func rawHeader(name string, kind byte, size int) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00", size, 0))
	h[156] = kind
	copy(h[257:], "ustar\x0000")
	return rewrite(h, func([]byte) {})
}

func padded(data []byte) []byte { return append(data, make([]byte, (512-len(data)%512)%512)...) }

// giantPAX is an entry with a PAX header of 64 MiB.
func giantPAX() []byte {
	const size = 64 << 20
	return append(rawHeader("pax", tar.TypeXHeader, size), bytes.Repeat([]byte("x"), size)...)
}

// sparseFile is a file in the PAX 1.0 sparse form, with a single byte at its end.
func sparseFile(size int64) []byte {
	var records strings.Builder
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=sparse", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		n := len(r) + 3
		if n > 9 {
			n = len(r) + 4
		}
		fmt.Fprintf(&records, "%d %s\n", n, r)
	}
	data := append(rawHeader("pax", tar.TypeXHeader, records.Len()), padded([]byte(records.String()))...)
	sparseMap := padded(fmt.Appendf(nil, "1\n%d\n1\n", size-1))
	data = append(data, rawHeader("GNUSparseFile.0/sparse", tar.TypeReg, len(sparseMap)+1)...)
	data = append(data, sparseMap...)
	data = append(data, padded([]byte("x"))...)
	return append(data, make([]byte, 1024)...)
}

// TestSparseFile makes sure that the hostile ones above are refused for their size,
// not for their form.
func TestSparseFile(t *testing.T) {
	tree, err := unpackTo(t, t.TempDir(), Limits{}, sparseFile(100_000))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(tree, "sparse"))
	if err != nil || len(data) != 100_000 || data[99_999] != 'x' {
		t.Errorf("got %d bytes, %v", len(data), err)
	}
}

func opener(data []byte) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
