package folder

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/lambda"
)

// newFolders returns the folders that have a new directory by the name code.
func newFolders(t *testing.T) (*Folders, string) {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return New([]Folder{{Name: "code", Path: root, Dir: dir}}), root
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// read returns what is at a path.
func read(f *Folders, path string) ([]byte, error) {
	r, err := f.Open(context.Background(), path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// wantRefused checks that err is for the client, and has every word.
func wantRefused(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*lambda.Error](err)
	if !ok || e.Type != "InvalidParameterValueException" {
		t.Errorf("%s: %v, want a refusal", what, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(e.Message, w) {
			t.Errorf("%s: %q lacks %q", what, e.Message, w)
		}
	}
}

// A directory becomes a zip of what it has: modes, times, empty directories, and links as links.
func TestPack(t *testing.T) {
	f, root := newFolders(t)
	app := filepath.Join(root, "app")
	write(t, filepath.Join(app, "b", "main.py"), "print()")
	write(t, filepath.Join(app, "a.sh"), "#!/bin/sh")
	when := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	for _, err := range []error{
		os.Chmod(filepath.Join(app, "a.sh"), 0o755), os.Mkdir(filepath.Join(app, "empty"), 0o700),
		os.Symlink("/etc/passwd", filepath.Join(app, "out")), os.Chtimes(filepath.Join(app, "a.sh"), when, when),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := read(f, app)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range z.File {
		r, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %v %s", e.Name, e.Mode(), text))
	}
	want := "a.sh -rwxr-xr-x #!/bin/sh|b/ drwxr-xr-x |b/main.py -rw-r--r-- print()|empty/ drwx------ |out Lrwxrwxrwx /etc/passwd"
	if strings.Join(got, "|") != want {
		t.Errorf("%q, want %q", got, want)
	}
	if m := z.File[0].Modified; !m.Equal(when) {
		t.Errorf("modified %v, want %v", m, when)
	}
	for _, same := range []string{"code/app", "code/app/", "code/x/../app", app + "/."} {
		if again, err := read(f, same); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: %d bytes, %v, want the same zip", same, len(again), err)
		}
	}
}

// A file is taken as it is.
func TestZipFile(t *testing.T) {
	f, root := newFolders(t)
	write(t, filepath.Join(root, "app.zip"), "whatever")
	if b, err := read(f, "code/app.zip"); err != nil || string(b) != "whatever" {
		t.Errorf("%q, %v", b, err)
	}
}

// Nothing outside of a folder is read, whatever the path and the links are, and the refusal says
// what is wrong.
func TestOutside(t *testing.T) {
	f, root := newFolders(t)
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "secret")
	write(t, filepath.Join(root, "app", "main"), "")
	for name, target := range map[string]string{
		"up": "../" + filepath.Base(outside), "out": outside, "file": filepath.Join(outside, "secret"), "proc": "/proc/self/root",
		"circle": "circle", "inside": "app",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for path, word := range map[string]string{
		outside: "none of the folders code", root + "/../" + filepath.Base(outside): "none of the folders code", root + "x": "none of", "other/app": "none of",
		"../app": "none of", "code/out": "by a link", "code/out/secret": "by a link", "code/up": "by a link", "code/file": "by a link", "code/proc/etc": "by a link",
		"code/circle": "circle", "code/nothing": "has no", "code/app/main/x": "has no",
	} {
		b, err := read(f, path)
		if bytes.Contains(b, []byte("secret")) {
			t.Errorf("%s is read", path)
		}
		wantRefused(t, path, err, word)
	}
	if _, err := read(f, "code/inside"); err != nil {
		t.Errorf("a link below the folder: %v", err)
	}
	_, err := read(New(nil), "/srv")
	wantRefused(t, "without folders", err, "no folders", "folders:")
}

// What is no file, no directory and no link is refused by its name, and is not opened.
func TestSpecialFiles(t *testing.T) {
	for kind, mkAt := range map[string]func(string) error{
		"a named pipe": func(p string) error { return unix.Mkfifo(p, 0o644) },
		"a socket": func(p string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p})
			if err == nil {
				l.SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		},
	} {
		f, root := newFolders(t)
		write(t, filepath.Join(root, "app", "main"), "")
		if err := mkAt(filepath.Join(root, "app", "odd")); err != nil {
			t.Fatal(err)
		}
		_, err := read(f, "code/app")
		wantRefused(t, kind, err, "app/odd", kind)
		_, err = read(f, "code/app/odd")
		wantRefused(t, kind, err, "app/odd", kind)
	}
}

func TestBounds(t *testing.T) {
	f, root := newFolders(t)
	if err := os.Mkdir(filepath.Join(root, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := read(f, "code/empty")
	wantRefused(t, "nothing", err, "empty")
	if err := os.MkdirAll(filepath.Join(root, "deep"+strings.Repeat("/d", maxDepth)), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = read(f, "code/deep")
	wantRefused(t, "too deep", err, "100 directories")
}

// A reader that is closed early ends the packing, and so does the end of its context.
func TestCloseEarly(t *testing.T) {
	f, root := newFolders(t)
	write(t, filepath.Join(root, "app", "big"), strings.Repeat("x", 1<<20))
	r, err := f.Open(t.Context(), "code/app")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	r.Close() // returns: nothing packs any more
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err = f.Open(ctx, "code/app"); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was canceled", err)
	}
}

// While a directory becomes a link to the outside and a directory again, what is packed is what is
// inside, or it is refused.
func TestHostileRenames(t *testing.T) {
	f, root := newFolders(t)
	outside := t.TempDir()
	write(t, filepath.Join(outside, "main"), "secret")
	app := filepath.Join(root, "app")
	write(t, filepath.Join(app, "lib", "main"), "inside")
	if err := os.Symlink(outside, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(app, "lib"), unix.AT_FDCWD, filepath.Join(root, "link"), unix.RENAME_EXCHANGE); err != nil {
				stopped <- err
				return
			}
		}
	}()
	packs, links := 0, 0
	for range 3000 {
		b, err := read(f, "code/app")
		if bytes.Contains(b, []byte("secret")) {
			t.Fatal("what is outside was packed")
		}
		if err != nil {
			if _, ok := errors.AsType[*lambda.Error](err); !ok {
				t.Fatalf("%v is not for the client", err)
			}
			continue
		}
		packs++
		if z, err := zip.NewReader(bytes.NewReader(b), int64(len(b))); err == nil && z.File[0].Mode()&fs.ModeSymlink != 0 {
			links++
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if packs == 0 || links == 0 || links == packs {
		t.Errorf("%d packed, %d with a link: nothing changed meanwhile", packs, links)
	}
}
