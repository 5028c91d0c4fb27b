package rootfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A zip that another process extracts gives what this one would have made of it.
func TestUnzipElsewhere(t *testing.T) {
	dir := t.TempDir()
	zipPath := writeZip(t, dir, makeZip(t, file{name: "bootstrap", mode: 0o755, body: "#!/bin/sh\n"}, file{name: "a/b", body: "12345"}))
	store := openTestStore(t, filepath.Join(dir, "store"))
	store.Unzip = func(ctx context.Context, job ZipJob, zip, tree *os.File) error {
		if _, err := zip.Write([]byte("x")); err == nil {
			t.Error("the zip can be written")
		}
		return job.Run(ctx, zip, tree, nil)
	}
	entry, err := store.AddZip(t.Context(), zipPath, Limits{}, nil)
	if err != nil || entry.Size != 15 {
		t.Fatalf("%+v, %v", entry, err)
	}
	if b, err := os.ReadFile(filepath.Join(entry.Dir, "a/b")); err != nil || string(b) != "12345" {
		t.Errorf("%s, %v", b, err)
	}
	if info, err := os.Stat(filepath.Join(entry.Dir, "bootstrap")); err != nil || info.Mode() != 0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// A process that was taken over by the zip that it read may leave anything: it is
// refused, and nothing of it stays.
func TestUnzipHostile(t *testing.T) {
	for name, make := range map[string]func(tree string) error{
		"fifo":         func(tree string) error { return unix.Mkfifo(filepath.Join(tree, "x"), 0o600) },
		"socket":       func(tree string) error { return unix.Mknod(filepath.Join(tree, "x"), unix.S_IFSOCK|0o600, 0) },
		"set-user-id":  func(tree string) error { return writeMode(filepath.Join(tree, "x"), 0o755|os.ModeSetuid) },
		"set-group-id": func(tree string) error { return writeMode(filepath.Join(tree, "x"), 0o755|os.ModeSetgid) },
		"sticky folder": func(tree string) error {
			return errors.Join(os.Mkdir(filepath.Join(tree, "x"), 0o755), os.Chmod(filepath.Join(tree, "x"), 0o777|os.ModeSticky))
		},
		"hard links": func(tree string) error {
			return errors.Join(writeMode(filepath.Join(tree, "x"), 0o644), os.Link(filepath.Join(tree, "x"), filepath.Join(tree, "y")))
		},
		"too many bytes": func(tree string) error {
			return errors.Join(writeMode(filepath.Join(tree, "x"), 0o644), os.Truncate(filepath.Join(tree, "x"), 1<<20))
		},
		"too deep": func(tree string) error { return os.MkdirAll(filepath.Join(tree, "a/b/c/d"), 0o755) },
		"too many files": func(tree string) error {
			var err error
			for i := range 6 {
				err = errors.Join(err, os.Mkdir(filepath.Join(tree, strings.Repeat("x", i+1)), 0o755))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store := openTestStore(t, filepath.Join(dir, "store"))
			store.Unzip = func(_ context.Context, _ ZipJob, _, tree *os.File) error {
				path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(tree.Fd())))
				return errors.Join(err, make(path))
			}
			_, err := store.AddZip(t.Context(), writeZip(t, dir, makeZip(t, file{name: "bootstrap"})), Limits{Entries: 5, UnzippedBytes: 1000, Depth: 3}, nil)
			if err == nil || !strings.Contains(err.Error(), "take over") {
				t.Errorf("%v", err)
			}
			for _, folder := range []string{"sha256", "staging"} {
				if left, err := os.ReadDir(filepath.Join(dir, "store", folder)); err != nil || len(left) > 0 {
					t.Errorf("left in %s: %v, %v", folder, left, err)
				}
			}
		})
	}
}

func writeMode(name string, mode os.FileMode) error {
	return errors.Join(os.WriteFile(name, nil, 0o600), os.Chmod(name, mode))
}

func TestErrorsTravel(t *testing.T) {
	for _, want := range []error{
		&InvalidError{Kind: ErrUnsafe, File: "f.zip", Entry: "../x\x00y", Reason: "would leave the folder", Fix: "do not"},
		&InvalidError{Kind: ErrPackage, File: "f.zip", Reason: "is none", Err: errors.New("cause")},
		&InvalidError{Kind: ErrDigest, File: "f.zip", Reason: "is not what the “image” names: ä"},
		errors.New("no space left on device"),
	} {
		b := EncodeError(want)
		got := DecodeError("f.zip", b)
		if got.Error() != want.Error() {
			t.Errorf("%v became %v", want, got)
		}
		for _, kind := range kinds {
			if errors.Is(got, kind) != errors.Is(want, kind) {
				t.Errorf("%v: is it %v?", got, kind)
			}
		}
		for n := range b {
			if err := DecodeError("f.zip", b[:n]); err == nil {
				t.Errorf("%d of %d bytes are no error", n, len(b))
			}
		}
	}
	if err := DecodeError("f.zip", append([]byte{0}, 0xff, 0xff, 0xff, 0xff)); err == nil {
		t.Error("a lying length is no error")
	}
}

// What an extractor says that its input has taken over can neither flood a terminal nor
// steer it, and does not say from which file it came.
func TestErrorsAreTamed(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, hostile := range []error{
		&InvalidError{Kind: ErrUnsafe, File: "/etc/shadow", Entry: "e\x1b[2J" + long, Reason: "r\x1b]0;title\a" + long, Fix: "run\nrm -rf /\u202e", Err: errors.New("\x9b" + long)},
		errors.New("a\rb\x00" + long),
	} {
		got := DecodeError("f.zip", EncodeError(hostile)).Error()
		if strings.Contains(got, "shadow") || len(got) > 10_000 || strings.ContainsFunc(got, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Errorf("%d bytes: %.200q", len(got), got)
		}
	}
}

// An extraction that fills the disk is stopped while it runs, and leaves nothing.
func TestUnzipWithoutEnd(t *testing.T) {
	for name, make := range map[string]func(tree string) error{
		"bytes": func(tree string) error {
			return errors.Join(writeMode(filepath.Join(tree, "x"), 0o644), os.Truncate(filepath.Join(tree, "x"), 1<<20))
		},
		"files": func(tree string) error {
			var err error
			for i := range 6 {
				err = errors.Join(err, os.Mkdir(filepath.Join(tree, strconv.Itoa(i)), 0o755))
			}
			return err
		},
		"depth": func(tree string) error { return os.MkdirAll(filepath.Join(tree, "a/b/c/d"), 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store := openTestStore(t, filepath.Join(dir, "store"))
			store.Unzip = func(ctx context.Context, _ ZipJob, _, tree *os.File) error {
				path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(tree.Fd())))
				if err := errors.Join(err, make(path)); err != nil {
					return err
				}
				<-ctx.Done() // a process would be killed now
				return ctx.Err()
			}
			_, err := store.AddZip(t.Context(), writeZip(t, dir, makeZip(t, file{name: "bootstrap"})), Limits{Entries: 5, UnzippedBytes: 1000, Depth: 3}, nil)
			if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "more than 1000 bytes or 5 files") {
				t.Errorf("%v", err)
			}
			if left, err := os.ReadDir(filepath.Join(dir, "store", "staging")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// What cannot be looked at ends an extraction: nobody could say how much there is. A
// folder that goes while it is looked at does not.
func TestLookFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	bounds := Bounds{File: "f.zip", Entries: 10, Depth: 10}
	if err := bounds.look(t.Context(), root); err != nil {
		t.Errorf("control: %v", err)
	}
	next, err := unix.Dup(0) // the lowest free descriptor
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next) + 2, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	err = bounds.look(t.Context(), root)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), "f.zip") || !strings.Contains(err.Error(), "cannot be counted") {
		t.Errorf("without descriptors: %v", err)
	}
	for _, gone := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP} {
		if err := unlessChanged(true, "x", gone); err != nil {
			t.Errorf("%v: %v", gone, err)
		}
	}
}

// Some of the file system is left to others, in bytes and in inodes, if it counts them.
func TestReserve(t *testing.T) {
	for want, st := range map[string]unix.Statfs_t{
		"":                      {Bsize: 4096, Blocks: 1 << 30, Bavail: 1 << 20, Files: 1000, Ffree: 20},
		"200.0 MiB are left":    {Bsize: 4096, Blocks: 1 << 30, Bavail: 200 << 8, Files: 1000, Ffree: 500},
		"524288 bytes are left": {Bsize: 1024, Blocks: 50_000, Bavail: 512},
		"19 inodes are left":    {Bsize: 4096, Blocks: 1 << 30, Bavail: 1 << 29, Files: 1000, Ffree: 19},
	} {
		if got := reserve(&st); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := reserve(&unix.Statfs_t{Bsize: 4096}); got != "" { // ramfs counts nothing
		t.Error(got)
	}
}

// Hard links are taken over where they are allowed, if none leads out of the folder.
func TestAdoptHardLinks(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := errors.Join(os.Mkdir(tree, 0o755), os.WriteFile(filepath.Join(tree, "a"), []byte("12345"), 0o644), os.Link(filepath.Join(tree, "a"), filepath.Join(tree, "b"))); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	bounds := Bounds{File: "x", Bytes: 5, Entries: 2, Depth: 1, HardLinks: true}
	if n, err := bounds.Adopt(root); err != nil || n != 5 {
		t.Errorf("%d, %v", n, err)
	}
	if err := os.Link(filepath.Join(tree, "a"), filepath.Join(dir, "outside")); err != nil {
		t.Fatal(err)
	}
	if _, err := bounds.Adopt(root); err == nil || !strings.Contains(err.Error(), "outside of the folder") {
		t.Errorf("%v", err)
	}
}

// Nothing of what a process has left changes hands that is another user's, or that has
// a name elsewhere: it may be a file of the host's.
func TestAdoptOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip(unix.EPERM) // of chown
	}
	const user, other = 1 << 30, 1<<30 + 1
	for name, test := range map[string]struct {
		owner int
		links bool // that lead out
		want  string
	}{
		"another user's":  {other, false, "another user's"},
		"name elsewhere":  {user, true, "outside of the folder"},
		"as it should be": {user, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tree := filepath.Join(dir, "tree")
			file, link := filepath.Join(tree, "file"), filepath.Join(tree, "link")
			err := errors.Join(os.Mkdir(tree, 0o755), os.WriteFile(file, nil, 0o644), os.Symlink("x", link), os.Link(link, filepath.Join(tree, "same")))
			if test.links {
				err = errors.Join(err, os.Link(file, filepath.Join(dir, "file")), os.Link(link, filepath.Join(dir, "link")))
			}
			err = errors.Join(err, os.Chown(tree, user, user), os.Lchown(file, test.owner, test.owner), os.Lchown(link, test.owner, test.owner))
			if err != nil {
				t.Fatal(err)
			}
			root, err := os.OpenRoot(tree)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			_, err = Bounds{File: "x", Entries: 3, Depth: 1, HardLinks: true}.Adopt(root)
			want := test.owner
			if test.want == "" {
				want = os.Geteuid()
			}
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			for _, name := range []string{file, link} {
				var st unix.Stat_t
				if err := unix.Lstat(name, &st); err != nil || int(st.Uid) != want {
					t.Errorf("%s is of user %d, %v, want %d", name, st.Uid, err, want)
				}
			}
		})
	}
}
