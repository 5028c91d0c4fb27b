package store

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// rawZip makes an archive of one stored entry whose header says what change wants.
func rawZip(t testing.TB, body string, change func(*zip.FileHeader)) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	h := &zip.FileHeader{Name: "liar", Method: zip.Store, CRC32: crc32.ChecksumIEEE([]byte(body)),
		CompressedSize64: uint64(len(body)), UncompressedSize64: uint64(len(body))}
	h.SetMode(0o644)
	change(h)
	fw, err := w.CreateRaw(h)
	if err == nil {
		_, err = io.WriteString(fw, body)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// deflated gives n zeros, a multiple of 1 MiB and two at least, as deflate stores
// them. All mebibytes but the first compress to the same bytes.
func deflated(t testing.TB, n int64) string {
	t.Helper()
	const mebi = 1 << 20
	var out bytes.Buffer
	fw, err := flate.NewWriter(&out, flate.BestSpeed)
	mark := func(step func() error) int {
		if err == nil {
			err = step()
		}
		return out.Len()
	}
	write := func() error {
		if _, err := fw.Write(make([]byte, mebi)); err != nil {
			return err
		}
		return fw.Flush()
	}
	first, second := mark(write), mark(write)
	mark(fw.Close)
	if err != nil {
		t.Fatal(err)
	}
	data := out.String()
	return data[:first] + strings.Repeat(data[first:second], int(n/mebi)-1) + data[second:]
}

// TestDeflated makes sure of the test's own zeros.
func TestDeflated(t *testing.T) {
	n, err := io.Copy(io.Discard, flate.NewReader(strings.NewReader(deflated(t, 16<<20))))
	if n != 16<<20 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// patchCentral changes the n-th central directory header (from 0).
func patchCentral(t testing.TB, data []byte, n int, change func(header []byte)) []byte {
	t.Helper()
	data = bytes.Clone(data)
	at := 0
	for i := 0; ; i++ {
		next := bytes.Index(data[at:], []byte("PK\x01\x02"))
		if next < 0 {
			t.Fatalf("no central header %d", n)
		}
		at += next
		if i == n {
			change(data[at:])
			return data
		}
		at += 4
	}
}

func manyFiles(t testing.TB, n int) []byte {
	files := make([]ziptest.File, n)
	for i := range files {
		files[i].Name = fmt.Sprintf("f%06d", i)
	}
	return ziptest.Make(t, files...)
}

// TestHostileZips is the list of SEC-56: every one is
// refused with its kind and its name, and nothing of it is left.
func TestHostileZips(t *testing.T) {
	le := binary.LittleEndian
	plain := ziptest.Make(t, ziptest.File{Name: "a", Body: strings.Repeat("x", 1000)}, ziptest.File{Name: "b", Body: "b"})
	tests := []struct {
		name  string
		data  []byte
		kind  error
		entry string // named in the message
	}{
		{"slip", ziptest.Make(t, ziptest.File{Name: "../evil"}), invalid.ErrUnsafe, "../evil"},
		{"slip below a folder", ziptest.Make(t, ziptest.File{Name: "a/../../evil"}), invalid.ErrUnsafe, "a/../../evil"},
		{"slip that comes back", ziptest.Make(t, ziptest.File{Name: "a/../evil"}), invalid.ErrUnsafe, "a/../evil"},
		{"absolute", ziptest.Make(t, ziptest.File{Name: "/etc/evil"}), invalid.ErrUnsafe, "/etc/evil"},
		{"NUL", ziptest.Make(t, ziptest.File{Name: "a\x00b"}), invalid.ErrUnsafe, `a\x00b`},
		{"backslash", ziptest.Make(t, ziptest.File{Name: `..\evil`}), invalid.ErrUnsafe, `evil`},
		{"no name", ziptest.Make(t, ziptest.File{Name: ""}), invalid.ErrUnsafe, "has no name"},
		{"write through a link", ziptest.Make(t, ziptest.File{Name: "d", Mode: 0o777 | fs.ModeSymlink, Body: "/tmp"}, ziptest.File{Name: "d/evil"}), invalid.ErrUnsafe, "d/evil"},
		{"link over a folder", ziptest.Make(t, ziptest.File{Name: "d/x"}, ziptest.File{Name: "d", Mode: 0o777 | fs.ModeSymlink, Body: "/tmp"}), invalid.ErrUnsafe, `"d"`},
		{"folder over a link", ziptest.Make(t, ziptest.File{Name: "d", Mode: 0o777 | fs.ModeSymlink, Body: "/tmp"}, ziptest.File{Name: "d/", Mode: 0o755 | fs.ModeDir, Body: ""}), invalid.ErrUnsafe, "d/"},
		{"link chain", ziptest.Make(t, ziptest.File{Name: "a", Mode: 0o777 | fs.ModeSymlink, Body: "."}, ziptest.File{Name: "a/b", Mode: 0o777 | fs.ModeSymlink, Body: ".."}, ziptest.File{Name: "a/b/evil"}), invalid.ErrUnsafe, "a/b"},
		{"write below a file", ziptest.Make(t, ziptest.File{Name: "d"}, ziptest.File{Name: "d/evil"}), invalid.ErrUnsafe, "d/evil"},
		{"link without target", ziptest.Make(t, ziptest.File{Name: "l", Mode: 0o777 | fs.ModeSymlink, Body: ""}), invalid.ErrUnsafe, `"l"`},
		{"link with NUL", ziptest.Make(t, ziptest.File{Name: "l", Mode: 0o777 | fs.ModeSymlink, Body: "a\x00b"}), invalid.ErrUnsafe, `"l"`},
		{"long link", ziptest.Make(t, ziptest.File{Name: "l", Mode: 0o777 | fs.ModeSymlink, Body: strings.Repeat("x", 5000)}), invalid.ErrUnsafe, `"l"`},
		{"file and folder", ziptest.Make(t, ziptest.File{Name: "same"}, ziptest.File{Name: "same/", Mode: 0o755 | fs.ModeDir, Body: ""}), invalid.ErrUnsafe, "same"},
		{"device", ziptest.Make(t, ziptest.File{Name: "null", Mode: 0o666 | fs.ModeDevice | fs.ModeCharDevice, Body: ""}), invalid.ErrUnsafe, "null"},
		{"disk", ziptest.Make(t, ziptest.File{Name: "sda", Mode: 0o666 | fs.ModeDevice, Body: ""}), invalid.ErrUnsafe, "sda"},
		{"fifo", ziptest.Make(t, ziptest.File{Name: "pipe", Mode: 0o666 | fs.ModeNamedPipe, Body: ""}), invalid.ErrUnsafe, "pipe"},
		{"socket", ziptest.Make(t, ziptest.File{Name: "sock", Mode: 0o666 | fs.ModeSocket, Body: ""}), invalid.ErrUnsafe, "sock"},
		{"depth 1,500", ziptest.Make(t, ziptest.File{Name: strings.Repeat("d/", 1500) + "f"}), invalid.ErrUnsafe, "d/d/d"},
		{"long component", ziptest.Make(t, ziptest.File{Name: strings.Repeat("n", 256)}), invalid.ErrUnsafe, "nnn"},
		{"long path", ziptest.Make(t, ziptest.File{Name: strings.Repeat("nnnnnnnn/", 1000)}), invalid.ErrUnsafe, "nnn"},
		{"120,000 files", manyFiles(t, 120_000), invalid.ErrTooLarge, "120000"},
		{"1 GiB of zeros", rawZip(t, deflated(t, 1<<30), func(h *zip.FileHeader) {
			h.Method, h.UncompressedSize64 = zip.Deflate, 1<<30
		}), invalid.ErrTooLarge, "250.0 MiB"},
		{"overlap", patchCentral(t, plain, 1, func(h []byte) { le.PutUint32(h[42:], 0) }), invalid.ErrUnsafe, `shares`},
		{"overlap by length", patchCentral(t, plain, 0, func(h []byte) { le.PutUint32(h[20:], le.Uint32(h[20:])+40) }), invalid.ErrUnsafe, `shares`},
		{"declares too little", rawZip(t, deflated(t, 8<<20), func(h *zip.FileHeader) {
			h.Method, h.UncompressedSize64 = zip.Deflate, 10
		}), invalid.ErrPackage, "liar"},
		{"declares too much", rawZip(t, "short", func(h *zip.FileHeader) { h.UncompressedSize64 = 100 }), invalid.ErrPackage, "liar"},
		{"declares 2^63", rawZip(t, "short", func(h *zip.FileHeader) { h.UncompressedSize64 = 1 << 63 }), invalid.ErrTooLarge, "MiB"},
		{"compressed size 2^63", rawZip(t, "short", func(h *zip.FileHeader) { h.CompressedSize64 = 1<<63 + 5 }), invalid.ErrPackage, ""},
		{"wrong CRC", rawZip(t, "short", func(h *zip.FileHeader) { h.CRC32++ }), invalid.ErrPackage, "liar"},
		{"CRC zero", rawZip(t, "short", func(h *zip.FileHeader) { h.CRC32 = 0 }), invalid.ErrPackage, "liar"},
		{"folder with content", patchCentral(t, rawZip(t, "short", func(h *zip.FileHeader) { h.Name = "dirx" }), 0, func(h []byte) { h[49] = '/' }), invalid.ErrUnsafe, "dir/"},
		{"encrypted", rawZip(t, "short", func(h *zip.FileHeader) { h.Flags |= 1 }), invalid.ErrPackage, "encrypted"},
		{"strongly encrypted", rawZip(t, "short", func(h *zip.FileHeader) { h.Flags |= 1 << 6 }), invalid.ErrPackage, "encrypted"},
		{"unknown method", rawZip(t, "short", func(h *zip.FileHeader) { h.Method = 14 }), invalid.ErrPackage, "method 14"},
		{"zip64 without its field", patchCentral(t, plain, 0, func(h []byte) { le.PutUint32(h[20:], 0xFFFFFFFF) }), invalid.ErrPackage, ""},
		{"zip64 size without its field", patchCentral(t, plain, 0, func(h []byte) { le.PutUint32(h[24:], 0xFFFFFFFF) }), invalid.ErrTooLarge, "MiB"},
		{"count too low", patchEnd(plain, func(e []byte) { le.PutUint16(e[10:], 1) }), invalid.ErrPackage, ""},
		{"count too high", patchEnd(plain, func(e []byte) { le.PutUint16(e[10:], 60_000) }), invalid.ErrPackage, ""},
		{"directory elsewhere", patchEnd(plain, func(e []byte) { le.PutUint32(e[16:], 1<<31) }), invalid.ErrPackage, ""},
		{"corrupt data", corruptData(plain), invalid.ErrPackage, `"a"`},
		{"truncated", plain[:len(plain)-10], invalid.ErrPackage, ""},
		{"no zip", []byte("#!/bin/sh\n"), invalid.ErrPackage, ""},
		{"empty file", nil, invalid.ErrPackage, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			outside := t.TempDir()
			zipPath := filepath.Join(outside, "code.zip")
			if err := os.WriteFile(zipPath, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			store := openTestStore(t, filepath.Join(outside, "store"))
			_, err := store.AddZip(context.Background(), zipPath, extract.Limits{}, nil)
			bad, ok := errors.AsType[*invalid.Error](err)
			if !ok || !errors.Is(err, tt.kind) {
				t.Fatalf("error %v, want an invalid.Error of kind %q", err, tt.kind)
			}
			if bad.File != zipPath || !strings.Contains(err.Error(), tt.entry) {
				t.Errorf("message %q does not name %q and %q", err, zipPath, tt.entry)
			}
			if len(err.Error()) > 1000 {
				t.Errorf("message has %d bytes", len(err.Error()))
			}
			ziptest.WantTree(t, outside, "code.zip", "store", "store/sha256", "store/staging")
		})
	}
}

func patchEnd(data []byte, change func(end []byte)) []byte {
	data = bytes.Clone(data)
	change(data[bytes.LastIndex(data, []byte("PK\x05\x06")):])
	return data
}

// corruptData flips a bit of the first entry's compressed data.
func corruptData(data []byte) []byte {
	data = bytes.Clone(data)
	data[30+1+2] ^= 0x10
	return data
}

func TestExtractModes(t *testing.T) {
	unixless := rawZip(t, "MZ", func(h *zip.FileHeader) { h.CreatorVersion, h.ExternalAttrs = 0, 0 })
	tests := []struct {
		name string
		data []byte
		path string
		want fs.FileMode
	}{
		{"kept", ziptest.Make(t, ziptest.File{Name: "x", Mode: 0o640}), "x", 0o640},
		{"executable", ziptest.Make(t, ziptest.File{Name: "bootstrap", Mode: 0o755}), "bootstrap", 0o755},
		{"set-id dropped", ziptest.Make(t, ziptest.File{Name: "x", Mode: 0o755 | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky}), "x", 0o755},
		{"no Unix modes", unixless, "liar", 0o755},
		{"folder", ziptest.Make(t, ziptest.File{Name: "d/", Mode: 0o750 | fs.ModeDir}), "d", 0o750 | fs.ModeDir},
		{"folder listed after its files", ziptest.Make(t, ziptest.File{Name: "d/x"}, ziptest.File{Name: "d/", Mode: 0o711 | fs.ModeDir}), "d", 0o711 | fs.ModeDir},
		{"folder listed twice", ziptest.Make(t, ziptest.File{Name: "d/", Mode: 0o700 | fs.ModeDir}, ziptest.File{Name: "d/", Mode: 0o755 | fs.ModeDir}), "d", 0o755 | fs.ModeDir},
		{"folder that its owner may not use", ziptest.Make(t, ziptest.File{Name: "d/", Mode: 0o005 | fs.ModeDir}, ziptest.File{Name: "d/x"}), "d", 0o705 | fs.ModeDir},
		{"implied folder", ziptest.Make(t, ziptest.File{Name: "d/x"}), "d", 0o755 | fs.ModeDir},
		{"dot names", ziptest.Make(t, ziptest.File{Name: "./", Mode: 0o755 | fs.ModeDir}, ziptest.File{Name: "./x"}), "x", 0o644},
		{"absolute link", ziptest.Make(t, ziptest.File{Name: "l", Mode: 0o777 | fs.ModeSymlink, Body: "/opt/bootstrap"}), "l", 0o777 | fs.ModeSymlink},
		{"link out", ziptest.Make(t, ziptest.File{Name: "a/l", Mode: 0o777 | fs.ModeSymlink, Body: "b/../../../x"}), "a/l", 0o777 | fs.ModeSymlink},
		{"link inside", ziptest.Make(t, ziptest.File{Name: "a/l", Mode: 0o777 | fs.ModeSymlink, Body: "../b"}), "a/l", 0o777 | fs.ModeSymlink},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			entry, err := openTestStore(t, filepath.Join(dir, "store")).AddZip(t.Context(), ziptest.Write(t, dir, tt.data), extract.Limits{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(filepath.Join(entry.Dir, tt.path))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != tt.want {
				t.Errorf("mode %v, want %v", info.Mode(), tt.want)
			}
		})
	}
	t.Run("names that differ in case are two files", func(t *testing.T) {
		dir := t.TempDir()
		data := ziptest.Make(t, ziptest.File{Name: "Readme", Body: "1"}, ziptest.File{Name: "README", Body: "2"})
		entry, err := openTestStore(t, filepath.Join(dir, "store")).AddZip(t.Context(), ziptest.Write(t, dir, data), extract.Limits{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ziptest.WantTree(t, entry.Dir, "README", "Readme")
	})
}

// Of several entries with the same name, however it is written, the last one is extracted,
// also if the first one is a link. Only what is extracted counts towards the limit.
func TestExtractLast(t *testing.T) {
	const link = 0o777 | fs.ModeSymlink
	for name, files := range map[string][]ziptest.File{
		"same":          {{Name: "d/f", Body: "first, and longer"}, {Name: "x"}, {Name: "d/f", Body: "last", Mode: 0o755}},
		"dot and slash": {{Name: "./d/f", Body: "first, and longer"}, {Name: "d//f", Body: "second"}, {Name: "d/./f", Body: "last", Mode: 0o755}, {Name: "x"}},
		"link first":    {{Name: "d/f", Body: "/etc/passwd", Mode: link}, {Name: "d/f", Body: "last", Mode: 0o755}, {Name: "x"}},
		"folders twice": {{Name: "d/", Mode: 0o700 | fs.ModeDir}, {Name: "d/f", Body: "last", Mode: 0o755}, {Name: "./d//", Mode: 0o755 | fs.ModeDir}, {Name: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			entry, err := openTestStore(t, filepath.Join(dir, "store")).AddZip(t.Context(), ziptest.Write(t, dir, ziptest.Make(t, files...)), extract.Limits{UnzippedBytes: 20}, nil)
			if err != nil {
				t.Fatal(err)
			}
			ziptest.WantTree(t, entry.Dir, "d", "d/f", "x")
			info, err := os.Lstat(filepath.Join(entry.Dir, "d/f"))
			if err != nil || info.Mode() != 0o755 {
				t.Fatalf("%v, %v", info, err)
			}
			if text, err := os.ReadFile(filepath.Join(entry.Dir, "d/f")); string(text) != "last" || err != nil || entry.Size != 4 {
				t.Errorf("%q, %v, size %d", text, err, entry.Size)
			}
		})
	}
}

// Files, directories and links have the times that the zip has for them: those of the
// extended timestamp, or else those of MS-DOS, taken for UTC.
func TestExtractTimes(t *testing.T) {
	when := time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
	make := func(change func(*zip.FileHeader)) []byte {
		return ziptest.Make(t, ziptest.File{Name: "d/", Mode: 0o755 | fs.ModeDir, Change: change},
			ziptest.File{Name: "d/f", Body: "x", Change: change}, ziptest.File{Name: "l", Mode: 0o777 | fs.ModeSymlink, Body: "/nowhere", Change: change})
	}
	dos := make(func(*zip.FileHeader) {})
	for n := range 3 {
		dos = patchCentral(t, dos, n, func(h []byte) {
			binary.LittleEndian.PutUint16(h[12:], 5<<11|6<<5|7/2)
			binary.LittleEndian.PutUint16(h[14:], 41<<9|3<<5|4)
		})
	}
	for name, test := range map[string]struct {
		data []byte
		want time.Time
	}{
		"extended timestamp": {make(func(h *zip.FileHeader) { h.Modified = when }), when},
		"MS-DOS":             {dos, when.Add(-time.Second)},
		"no time":            {make(func(*zip.FileHeader) {}), time.Date(1979, 11, 30, 0, 0, 0, 0, time.UTC)}, // month and day 0
		"after 2038": {make(func(h *zip.FileHeader) {
			h.Extra = []byte{'U', 'T', 5, 0, 1, 0, 0, 0, 0x80}
		}), time.Unix(1<<31, 0)}, // the field has no sign
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			entry, err := openTestStore(t, filepath.Join(dir, "store")).AddZip(t.Context(), ziptest.Write(t, dir, test.data), extract.Limits{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"d", "d/f", "l"} {
				info, err := os.Lstat(filepath.Join(entry.Dir, name))
				if err != nil || !info.ModTime().Equal(test.want) {
					t.Errorf("%s: %v, %v, want %v", name, info.ModTime(), err, test.want)
				}
			}
		})
	}
}

// An entry that an older version has made, whose files have other times, is made anew.
func TestEntryOfAnotherForm(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, filepath.Join(dir, "store"))
	path := ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "f", Body: "x"}))
	ref, err := s.AddZip(t.Context(), path, extract.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	closeRef(t, ref)
	meta := filepath.Join(s.path(ref.Digest), entryFile)
	text, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(string(text), fmt.Sprintf(`"form":%d`, entryForm), `"form":0`, 1)
	if err := os.WriteFile(meta, []byte(old), 0o600); err != nil || old == string(text) {
		t.Fatalf("%s, %v", old, err)
	}
	if ref, err = s.AddZip(t.Context(), path, extract.Limits{}, nil); err != nil {
		t.Fatal(err)
	}
	defer closeRef(t, ref)
	if again, err := os.ReadFile(meta); string(again) != string(text) || err != nil {
		t.Errorf("%s, %v", again, err)
	}
}

func closeRef(t testing.TB, r *Ref) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func openTestStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// FuzzAddZip: whatever the bytes, extraction makes files, folders and links below
// the entry and nothing else, and leaves nothing when it fails.
func FuzzAddZip(f *testing.F) {
	f.Add(ziptest.Make(f, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: "#!/bin/sh\n"}, ziptest.File{Name: "l", Mode: 0o777 | fs.ModeSymlink, Body: "bootstrap"}))
	f.Add(ziptest.Make(f, ziptest.File{Name: "../evil", Body: "x"}))
	f.Add(ziptest.Make(f, ziptest.File{Name: "d", Mode: 0o777 | fs.ModeSymlink, Body: "/tmp"}, ziptest.File{Name: "d/evil", Body: "x"}))
	f.Add(ziptest.Make(f, ziptest.File{Name: "d/", Mode: 0o700 | fs.ModeDir}, ziptest.File{Name: "d/x", Mode: 0o755 | fs.ModeSetuid}))
	f.Add(rawZip(f, "short", func(h *zip.FileHeader) { h.UncompressedSize64 = 1 << 40 }))
	f.Add(ziptest.Make(f, ziptest.File{Name: "null", Mode: 0o666 | fs.ModeDevice | fs.ModeCharDevice, Body: ""}))
	limits := extract.Limits{UnzippedBytes: 1 << 20, Entries: 100, Depth: 10}
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		store := openTestStore(t, filepath.Join(outside, "store"))
		entry, err := store.AddZip(context.Background(), ziptest.Write(t, outside, data), limits, nil)
		if err != nil {
			ziptest.WantTree(t, outside, "code.zip", "store", "store/sha256", "store/staging")
			if !errors.As(err, new(*invalid.Error)) {
				t.Errorf("%v is no invalid.Error", err)
			}
			return
		}
		defer closeRef(t, entry)
		if left, _ := os.ReadDir(filepath.Join(outside, "store", "staging")); len(left) > 0 {
			t.Errorf("staging holds %v", left)
		}
		if names, _ := os.ReadDir(outside); len(names) != 2 {
			t.Errorf("%v outside of the store", names)
		}
		var size int64
		err = filepath.WalkDir(entry.Dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			switch info.Mode().Type() {
			case 0:
				size += info.Size()
			case fs.ModeDir, fs.ModeSymlink:
			default:
				t.Errorf("%s is %v", p, info.Mode())
			}
			if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
				t.Errorf("%s has mode %v", p, info.Mode())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if size > limits.UnzippedBytes {
			t.Errorf("%d bytes extracted", size)
		}
	})
}
