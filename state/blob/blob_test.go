package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

// open opens the store in a folder, which is closed with the test.
func open(t *testing.T, dir string, options Options) *Store {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(root, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); root.Close() })
	return s
}

// put keeps content without a pin.
func put(t *testing.T, s *Store, content string) Digest {
	t.Helper()
	pin, err := s.Put(t.Context(), strings.NewReader(content), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	pin.Release()
	if want := sha256.Sum256([]byte(content)); pin.Digest != want || pin.Size != int64(len(content)) {
		t.Fatalf("%x of %d bytes, want %x", pin.Digest, pin.Size, want)
	}
	return pin.Digest
}

// get reads a blob by Open.
func get(s *Store, d Digest) (string, error) {
	r, err := s.Open(d)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func list(t *testing.T, s *Store) []Digest {
	t.Helper()
	all, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantFiles checks which files there are below dir, folders aside.
func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	var got []string
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			got = append(got, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("there is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What was put is there, after another start too, and the same content is there once.
func TestPut(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s, err := Open(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	contents := []string{"", "x", strings.Repeat("0123456789", 500_000), strings.Repeat("y", chunk), strings.Repeat("z", 2*chunk)}
	var digests []Digest
	var files []string
	for _, c := range append(contents, "x") {
		d := put(t, s, c)
		digests, files = append(digests, d), append(files, fmt.Sprintf("blobs/sha256/%02x/%x", d[0], d))
	}
	digests, files = digests[:len(contents)], files[:len(contents)]
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	for i, d := range digests {
		if got, err := get(s, d); err != nil || got != contents[i] {
			t.Errorf("%d bytes, %v; want %d", len(got), err, len(contents[i]))
		}
		if size, err := s.Size(d); err != nil || size != int64(len(contents[i])) {
			t.Errorf("%d, %v; want %d", size, err, len(contents[i]))
		}
		f, err := s.Verified(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || string(got) != contents[i] {
			t.Errorf("verified: %d bytes, %v", len(got), err)
		}
		f.Close()
	}
	slices.SortFunc(digests, func(a, b Digest) int { return bytes.Compare(a[:], b[:]) })
	if got := list(t, s); !slices.Equal(got, digests) {
		t.Errorf("%x, want %x", got, digests)
	}
	wantFiles(t, dir, files...)
}

// An upload that fails leaves nothing, and says why.
func TestPutFails(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	broken := errors.New("broken")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	megabytes := strings.Repeat("x", 3*chunk)
	for _, tt := range []struct {
		name    string
		ctx     context.Context
		content io.Reader
		want    error
	}{
		{"too large", t.Context(), strings.NewReader(megabytes + "x"), ErrTooLarge},
		{"endless", t.Context(), endless{}, ErrTooLarge},
		{"broken at once", t.Context(), iotest.ErrReader(broken), broken},
		{"broken later", t.Context(), io.MultiReader(strings.NewReader(megabytes), iotest.ErrReader(broken)), broken},
		{"cut off", t.Context(), io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF},
		{"cut off at a chunk", t.Context(), io.MultiReader(strings.NewReader(megabytes), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF},
		{"too late", ended, strings.NewReader("x"), context.Canceled},
	} {
		if pin, err := s.Put(tt.ctx, tt.content, int64(len(megabytes))); pin != nil || !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		wantFiles(t, dir)
	}
	if _, err := s.PutDigest(t.Context(), strings.NewReader("x"), 1, Digest{1}); !errors.Is(err, ErrDigest) {
		t.Errorf("another digest: %v", err)
	}
	wantFiles(t, dir)
	pin, err := s.PutDigest(t.Context(), iotest.OneByteReader(strings.NewReader(megabytes)), int64(len(megabytes)), sha256.Sum256([]byte(megabytes)))
	if err != nil {
		t.Fatal(err)
	}
	pin.Release()
	if err := s.Restore(t.Context(), Digest{1}, strings.NewReader("x")); !errors.Is(err, ErrDigest) {
		t.Errorf("another digest: %v", err)
	}
	if err := s.Restore(t.Context(), sha256.Sum256([]byte("x")), strings.NewReader("x")); err != nil {
		t.Error(err)
	}
}

// endless has no end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// The disk keeps what the floor says.
func TestFloor(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Floor: 1 << 60})
	if _, err := s.Put(t.Context(), strings.NewReader("x"), 10); !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v, want %v", err, ErrNoSpace)
	}
	wantFiles(t, dir)
}

// As many uploads run as may, and others wait for their turn or their end.
func TestUploadsWait(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	started := make(chan *io.PipeWriter)
	finished := make(chan error)
	upload := func(ctx context.Context) {
		r, w := io.Pipe()
		pin, err := s.Put(ctx, readerFunc(func(p []byte) (int, error) {
			if w != nil {
				started <- w
				w = nil
			}
			return r.Read(p)
		}), 10)
		if pin != nil {
			pin.Release()
		}
		finished <- err
	}
	for range 2 {
		go upload(t.Context())
	}
	one, two := <-started, <-started
	ctx, cancel := context.WithCancel(t.Context())
	go upload(ctx)
	cancel()
	if err := <-finished; !errors.Is(err, context.Canceled) {
		t.Errorf("one that waited: %v", err)
	}
	go upload(t.Context())
	select {
	case <-started:
		t.Error("three run at once")
	default:
	}
	one.Close()
	if err := <-finished; err != nil {
		t.Error(err)
	}
	three := <-started
	two.Close()
	three.Close()
	if err := errors.Join(<-finished, <-finished); err != nil {
		t.Error(err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// An upload needs little memory, however large it is.
func TestMemory(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	pin, err := s.Put(t.Context(), io.LimitReader(endless{}, 64<<20), 64<<20)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	pin.Release()
	// All that was allocated, of which the collector frees some.
	if got := after.TotalAlloc - before.TotalAlloc; got > 4<<20 {
		t.Errorf("%d bytes for 64 MiB", got)
	}
}

// Whatever byte is damaged, and wherever a blob is cut or made longer, it is said and not
// served as whole.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	content := strings.Repeat("content ", 20)
	d := put(t, s, content)
	path := filepath.Join(dir, file(d))
	check := func(what string, damaged []byte) {
		t.Helper()
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := get(s, d); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), fmt.Sprintf("%x", d)) {
			t.Errorf("%s: read: %v", what, err)
		}
		if f, err := s.Verified(t.Context(), d); f != nil || !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
		if err := s.Verify(t.Context(), d); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: verified: %v", what, err)
		}
	}
	for i := range content {
		flipped := []byte(content)
		flipped[i] ^= 1 << (i % 8)
		check(fmt.Sprintf("byte %d", i), flipped)
		check(fmt.Sprintf("cut at %d", i), []byte(content[:i]))
	}
	check("longer", []byte(content+"\x00"))
	// To put it again mends it.
	put(t, s, content)
	if got, err := get(s, d); err != nil || got != content {
		t.Errorf("after it was put again: %q, %v", got, err)
	}
}

// What is missing, or is no file, is said and not waited for.
func TestNotFound(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	put(t, s, "there")
	if err := os.WriteFile(filepath.Join(dir, "elsewhere"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, make := range map[string]func(path string) error{
		"missing": func(string) error { return nil },
		"folder":  func(path string) error { return os.Mkdir(path, 0o700) },
		"FIFO":    func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link":    func(path string) error { return os.Symlink("../../../elsewhere", path) },
	} {
		d := Digest(sha256.Sum256([]byte(what)))
		if err := make(filepath.Join(dir, file(d))); err != nil {
			t.Fatal(err)
		}
		_, openErr := s.Open(d)
		_, fileErr := s.Verified(t.Context(), d)
		_, sizeErr := s.Size(d)
		_, pinErr := s.Pin(d)
		for _, err := range []error{openErr, fileErr, sizeErr, pinErr, s.Verify(t.Context(), d)} {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// What a killed process was writing is removed, and one process at a time has a store.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	d := put(t, s, "x")
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := Open(root, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, temp, "1"), []byte("half"), 0o600),
		os.MkdirAll(filepath.Join(dir, temp, "folder/of/something"), 0o700),
		os.WriteFile(filepath.Join(dir, shards, "notes"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, shards, "aa", "notes"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, shards, "aa", strings.Repeat("b", 64)), nil, 0o600), // in another's folder
	)
	if err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, Options{})
	if got := list(t, again); len(got) != 1 || got[0] != d {
		t.Errorf("%x, want %x", got, d)
	}
	if left, err := os.ReadDir(filepath.Join(dir, temp)); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	put(t, again, "y") // its temporary file has the name of the one that was left
}

func TestParse(t *testing.T) {
	hex := strings.Repeat("0f", 32)
	if d, err := Parse(hex); err != nil || d[0] != 0x0f || d[31] != 0x0f {
		t.Errorf("%x, %v", d, err)
	}
	for _, text := range []string{"", hex[1:], hex + "00", strings.ToUpper(hex), strings.Repeat("g", 64), hex[:62] + "/."} {
		if _, err := Parse(text); err == nil {
			t.Errorf("%q is a digest", text)
		}
	}
}
