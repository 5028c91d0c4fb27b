package rootfs

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
	"slices"
	"strings"
	"testing"
)

// file is an entry of a test zip. Mode 0 is 0644; links have their target as body.
type file struct {
	name string
	mode fs.FileMode
	body string
}

// makeZip makes an archive with archive/zip, which does not object to any name.
func makeZip(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, f := range files {
		h := &zip.FileHeader{Name: f.name, Method: zip.Deflate}
		if f.mode == 0 {
			f.mode = 0o644
		}
		h.SetMode(f.mode)
		if f.body == "" {
			h.Method = zip.Store
		}
		fw, err := w.CreateHeader(h)
		if err == nil && f.body != "" {
			_, err = io.WriteString(fw, f.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

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
	files := make([]file, n)
	for i := range files {
		files[i].name = fmt.Sprintf("f%06d", i)
	}
	return makeZip(t, files...)
}

// TestHostileZips is the list "Archives" of REQUIREMENTS section 4: every one is
// refused with its kind and its name, and nothing of it is left.
func TestHostileZips(t *testing.T) {
	le := binary.LittleEndian
	plain := makeZip(t, file{name: "a", body: strings.Repeat("x", 1000)}, file{name: "b", body: "b"})
	tests := []struct {
		name  string
		data  []byte
		kind  error
		entry string // named in the message
	}{
		{"slip", makeZip(t, file{name: "../evil"}), ErrUnsafe, "../evil"},
		{"slip below a folder", makeZip(t, file{name: "a/../../evil"}), ErrUnsafe, "a/../../evil"},
		{"slip that comes back", makeZip(t, file{name: "a/../evil"}), ErrUnsafe, "a/../evil"},
		{"absolute", makeZip(t, file{name: "/etc/evil"}), ErrUnsafe, "/etc/evil"},
		{"NUL", makeZip(t, file{name: "a\x00b"}), ErrUnsafe, `a\x00b`},
		{"backslash", makeZip(t, file{name: `..\evil`}), ErrUnsafe, `evil`},
		{"no name", makeZip(t, file{name: ""}), ErrUnsafe, "has no name"},
		{"write through a link", makeZip(t, file{"d", 0o777 | fs.ModeSymlink, "/tmp"}, file{name: "d/evil"}), ErrUnsafe, "d/evil"},
		{"link over a folder", makeZip(t, file{name: "d/x"}, file{"d", 0o777 | fs.ModeSymlink, "/tmp"}), ErrUnsafe, `"d"`},
		{"folder over a link", makeZip(t, file{"d", 0o777 | fs.ModeSymlink, "/tmp"}, file{"d/", 0o755 | fs.ModeDir, ""}), ErrUnsafe, "d/"},
		{"link chain", makeZip(t, file{"a", 0o777 | fs.ModeSymlink, "."}, file{"a/b", 0o777 | fs.ModeSymlink, ".."}, file{name: "a/b/evil"}), ErrUnsafe, "a/b"},
		{"write below a file", makeZip(t, file{name: "d"}, file{name: "d/evil"}), ErrUnsafe, "d/evil"},
		{"link out", makeZip(t, file{"l", 0o777 | fs.ModeSymlink, "../../etc/passwd"}), ErrUnsafe, `"l"`},
		{"link out by detour", makeZip(t, file{"a/l", 0o777 | fs.ModeSymlink, "b/../../../x"}), ErrUnsafe, "a/l"},
		{"link without target", makeZip(t, file{"l", 0o777 | fs.ModeSymlink, ""}), ErrUnsafe, `"l"`},
		{"link with NUL", makeZip(t, file{"l", 0o777 | fs.ModeSymlink, "a\x00b"}), ErrUnsafe, `"l"`},
		{"long link", makeZip(t, file{"l", 0o777 | fs.ModeSymlink, strings.Repeat("x", 5000)}), ErrUnsafe, `"l"`},
		{"duplicate", makeZip(t, file{name: "same"}, file{name: "same"}), ErrUnsafe, "same"},
		{"duplicate in disguise", makeZip(t, file{name: "same"}, file{name: "./same"}), ErrUnsafe, "same"},
		{"file and folder", makeZip(t, file{name: "same"}, file{"same/", 0o755 | fs.ModeDir, ""}), ErrUnsafe, "same"},
		{"device", makeZip(t, file{"null", 0o666 | fs.ModeDevice | fs.ModeCharDevice, ""}), ErrUnsafe, "null"},
		{"disk", makeZip(t, file{"sda", 0o666 | fs.ModeDevice, ""}), ErrUnsafe, "sda"},
		{"fifo", makeZip(t, file{"pipe", 0o666 | fs.ModeNamedPipe, ""}), ErrUnsafe, "pipe"},
		{"socket", makeZip(t, file{"sock", 0o666 | fs.ModeSocket, ""}), ErrUnsafe, "sock"},
		{"depth 1,500", makeZip(t, file{name: strings.Repeat("d/", 1500) + "f"}), ErrUnsafe, "d/d/d"},
		{"long component", makeZip(t, file{name: strings.Repeat("n", 256)}), ErrUnsafe, "nnn"},
		{"long path", makeZip(t, file{name: strings.Repeat("nnnnnnnn/", 1000)}), ErrUnsafe, "nnn"},
		{"120,000 files", manyFiles(t, 120_000), ErrTooLarge, "120000"},
		{"1 GiB of zeros", rawZip(t, deflated(t, 1<<30), func(h *zip.FileHeader) {
			h.Method, h.UncompressedSize64 = zip.Deflate, 1<<30
		}), ErrTooLarge, "250.0 MiB"},
		{"overlap", patchCentral(t, plain, 1, func(h []byte) { le.PutUint32(h[42:], 0) }), ErrUnsafe, `shares`},
		{"overlap by length", patchCentral(t, plain, 0, func(h []byte) { le.PutUint32(h[20:], le.Uint32(h[20:])+40) }), ErrUnsafe, `shares`},
		{"declares too little", rawZip(t, deflated(t, 8<<20), func(h *zip.FileHeader) {
			h.Method, h.UncompressedSize64 = zip.Deflate, 10
		}), ErrPackage, "liar"},
		{"declares too much", rawZip(t, "short", func(h *zip.FileHeader) { h.UncompressedSize64 = 100 }), ErrPackage, "liar"},
		{"declares 2^63", rawZip(t, "short", func(h *zip.FileHeader) { h.UncompressedSize64 = 1 << 63 }), ErrTooLarge, "MiB"},
		{"compressed size 2^63", rawZip(t, "short", func(h *zip.FileHeader) { h.CompressedSize64 = 1<<63 + 5 }), ErrPackage, ""},
		{"wrong CRC", rawZip(t, "short", func(h *zip.FileHeader) { h.CRC32++ }), ErrPackage, "liar"},
		{"CRC zero", rawZip(t, "short", func(h *zip.FileHeader) { h.CRC32 = 0 }), ErrPackage, "liar"},
		{"folder with content", patchCentral(t, rawZip(t, "short", func(h *zip.FileHeader) { h.Name = "dirx" }), 0, func(h []byte) { h[49] = '/' }), ErrUnsafe, "dir/"},
		{"encrypted", rawZip(t, "short", func(h *zip.FileHeader) { h.Flags |= 1 }), ErrPackage, "encrypted"},
		{"strongly encrypted", rawZip(t, "short", func(h *zip.FileHeader) { h.Flags |= 1 << 6 }), ErrPackage, "encrypted"},
		{"unknown method", rawZip(t, "short", func(h *zip.FileHeader) { h.Method = 14 }), ErrPackage, "method 14"},
		{"zip64 without its field", patchCentral(t, plain, 0, func(h []byte) { le.PutUint32(h[20:], 0xFFFFFFFF) }), ErrPackage, ""},
		{"zip64 size without its field", patchCentral(t, plain, 0, func(h []byte) { le.PutUint32(h[24:], 0xFFFFFFFF) }), ErrTooLarge, "MiB"},
		{"count too low", patchEnd(plain, func(e []byte) { le.PutUint16(e[10:], 1) }), ErrPackage, ""},
		{"count too high", patchEnd(plain, func(e []byte) { le.PutUint16(e[10:], 60_000) }), ErrPackage, ""},
		{"directory elsewhere", patchEnd(plain, func(e []byte) { le.PutUint32(e[16:], 1<<31) }), ErrPackage, ""},
		{"corrupt data", corruptData(plain), ErrPackage, `"a"`},
		{"truncated", plain[:len(plain)-10], ErrPackage, ""},
		{"no zip", []byte("#!/bin/sh\n"), ErrPackage, ""},
		{"empty file", nil, ErrPackage, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			outside := t.TempDir()
			zipPath := filepath.Join(outside, "code.zip")
			if err := os.WriteFile(zipPath, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			store := openTestStore(t, filepath.Join(outside, "store"))
			_, err := store.AddZip(context.Background(), zipPath, Limits{}, nil)
			invalid, ok := errors.AsType[*InvalidError](err)
			if !ok || !errors.Is(err, tt.kind) {
				t.Fatalf("error %v, want an InvalidError of kind %q", err, tt.kind)
			}
			if invalid.File != zipPath || !strings.Contains(err.Error(), tt.entry) {
				t.Errorf("message %q does not name %q and %q", err, zipPath, tt.entry)
			}
			if len(err.Error()) > 1000 {
				t.Errorf("message has %d bytes", len(err.Error()))
			}
			wantTree(t, outside, "code.zip", "store", "store/sha256", "store/staging")
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

// wantTree fails unless dir holds exactly these paths.
func wantTree(t testing.TB, dir string, want ...string) {
	t.Helper()
	var got []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); err == nil && rel != "." {
			got = append(got, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("tree is %q, want %q", got, want)
	}
}

// TestManyEntryListIsBounded: a list of entries that would fill the daemon's memory
// is refused before it is read.
func TestManyEntryListIsBounded(t *testing.T) {
	files := make([]file, 8200)
	for i := range files {
		files[i].name = fmt.Sprintf("%05d%s", i, strings.Repeat("/x", 2040))
	}
	data := makeZip(t, files...)
	_, err := planZip("big.zip", bytes.NewReader(data), int64(len(data)), Limits{}.withDefaults())
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "list of entries") {
		t.Errorf("error %v, want ErrTooLarge for the list", err)
	}
}

// TestImpliedDirectoriesCount: directories that no entry lists count as entries.
func TestImpliedDirectoriesCount(t *testing.T) {
	data := makeZip(t, file{name: "a/b/c/d"}, file{name: "e/f/g/h"})
	_, err := planZip("x.zip", bytes.NewReader(data), int64(len(data)), Limits{Entries: 7}.withDefaults())
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("8 files and directories pass a limit of 7: %v", err)
	}
	if _, err := planZip("x.zip", bytes.NewReader(data), int64(len(data)), Limits{Entries: 8}.withDefaults()); err != nil {
		t.Errorf("8 files and directories do not pass a limit of 8: %v", err)
	}
}

func TestExtractModes(t *testing.T) {
	unixless := rawZip(t, "MZ", func(h *zip.FileHeader) { h.CreatorVersion, h.ExternalAttrs = 0, 0 })
	tests := []struct {
		name string
		data []byte
		path string
		want fs.FileMode
	}{
		{"kept", makeZip(t, file{name: "x", mode: 0o640}), "x", 0o640},
		{"executable", makeZip(t, file{name: "bootstrap", mode: 0o755}), "bootstrap", 0o755},
		{"set-id dropped", makeZip(t, file{name: "x", mode: 0o755 | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky}), "x", 0o755},
		{"no Unix modes", unixless, "liar", 0o755},
		{"folder", makeZip(t, file{name: "d/", mode: 0o750 | fs.ModeDir}), "d", 0o750 | fs.ModeDir},
		{"folder listed after its files", makeZip(t, file{name: "d/x"}, file{name: "d/", mode: 0o711 | fs.ModeDir}), "d", 0o711 | fs.ModeDir},
		{"folder listed twice", makeZip(t, file{name: "d/", mode: 0o700 | fs.ModeDir}, file{name: "d/", mode: 0o755 | fs.ModeDir}), "d", 0o755 | fs.ModeDir},
		{"folder that its owner may not use", makeZip(t, file{name: "d/", mode: 0o005 | fs.ModeDir}, file{name: "d/x"}), "d", 0o705 | fs.ModeDir},
		{"implied folder", makeZip(t, file{name: "d/x"}), "d", 0o755 | fs.ModeDir},
		{"dot names", makeZip(t, file{name: "./", mode: 0o755 | fs.ModeDir}, file{name: "./x"}), "x", 0o644},
		{"absolute link", makeZip(t, file{"l", 0o777 | fs.ModeSymlink, "/opt/bootstrap"}), "l", 0o777 | fs.ModeSymlink},
		{"link inside", makeZip(t, file{"a/l", 0o777 | fs.ModeSymlink, "../b"}), "a/l", 0o777 | fs.ModeSymlink},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			entry, err := openTestStore(t, filepath.Join(dir, "store")).AddZip(t.Context(), writeZip(t, dir, tt.data), Limits{}, nil)
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
		data := makeZip(t, file{name: "Readme", body: "1"}, file{name: "README", body: "2"})
		entry, err := openTestStore(t, filepath.Join(dir, "store")).AddZip(t.Context(), writeZip(t, dir, data), Limits{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantTree(t, entry.Dir, "README", "Readme")
	})
}

func writeZip(t testing.TB, dir string, data []byte) string {
	t.Helper()
	name := filepath.Join(dir, "code.zip")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func openTestStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// FuzzAddZip: whatever the bytes, extraction makes files, folders and links below
// the entry and nothing else, and leaves nothing when it fails.
func FuzzAddZip(f *testing.F) {
	f.Add(makeZip(f, file{name: "bootstrap", mode: 0o755, body: "#!/bin/sh\n"}, file{"l", 0o777 | fs.ModeSymlink, "bootstrap"}))
	f.Add(makeZip(f, file{name: "../evil", body: "x"}))
	f.Add(makeZip(f, file{"d", 0o777 | fs.ModeSymlink, "/tmp"}, file{name: "d/evil", body: "x"}))
	f.Add(makeZip(f, file{name: "d/", mode: 0o700 | fs.ModeDir}, file{name: "d/x", mode: 0o755 | fs.ModeSetuid}))
	f.Add(rawZip(f, "short", func(h *zip.FileHeader) { h.UncompressedSize64 = 1 << 40 }))
	f.Add(makeZip(f, file{"null", 0o666 | fs.ModeDevice | fs.ModeCharDevice, ""}))
	limits := Limits{UnzippedBytes: 1 << 20, Entries: 100, Depth: 10}
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		store := openTestStore(t, filepath.Join(outside, "store"))
		entry, err := store.AddZip(context.Background(), writeZip(t, outside, data), limits, nil)
		if err != nil {
			wantTree(t, outside, "code.zip", "store", "store/sha256", "store/staging")
			if !errors.As(err, new(*InvalidError)) {
				t.Errorf("%v is no InvalidError", err)
			}
			return
		}
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
