package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// makeTree makes files, folders (names that end with a slash) and links below a new
// folder.
func makeTree(t testing.TB, files ...ziptest.File) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		name := filepath.Join(dir, f.Name)
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		switch {
		case err != nil:
		case f.Mode&fs.ModeSymlink != 0:
			err = os.Symlink(f.Body, name)
		case strings.HasSuffix(f.Name, "/"):
			err = os.MkdirAll(name, 0o755)
		case f.Mode&fs.ModeNamedPipe != 0:
			err = unix.Mkfifo(name, 0o644)
		default:
			mode := f.Mode
			if mode == 0 {
				mode = 0o644
			}
			if err = os.WriteFile(name, []byte(f.Body), 0o600); err == nil {
				err = os.Chmod(name, mode)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const link = 0o777 | fs.ModeSymlink

func mountOf(t *Tree, target string) []string {
	for _, m := range t.Mounts {
		if m.Target == target {
			return m.Sources
		}
	}
	return nil
}

// checkTree: parents come before children, every mount has its directory, nothing
// is named twice, no mount lies below another, and sources are plain directories.
func checkTree(t *testing.T, tree *Tree) {
	t.Helper()
	seen := map[string]bool{"/": true}
	for _, d := range tree.Dirs {
		if !seen[path.Dir(d)] || seen[d] {
			t.Errorf("directory %s comes before its parent, or twice", d)
		}
		seen[d] = true
	}
	for _, l := range tree.Links {
		if !seen[path.Dir(l.Path)] || seen[l.Path] {
			t.Errorf("link %s has no parent, or is there twice", l.Path)
		}
		seen[l.Path] = true
	}
	for _, m := range tree.Mounts {
		if !slices.Contains(tree.Dirs, m.Target) {
			t.Errorf("mount %s has no directory", m.Target)
		}
		for _, other := range tree.Mounts {
			if strings.HasPrefix(m.Target, other.Target+"/") {
				t.Errorf("mount %s lies below %s", m.Target, other.Target)
			}
		}
		for _, s := range m.Sources {
			if info, err := os.Lstat(s); err != nil || !info.IsDir() || !filepath.IsAbs(s) {
				t.Errorf("source %s of %s is no directory: %v", s, m.Target, err)
			}
		}
	}
	for _, name := range []string{"/proc", "/dev", "/tmp", "/sys"} {
		if seen[name] {
			t.Errorf("%s is in the tree", name)
		}
	}
}

func TestBaseHost(t *testing.T) {
	scratch := t.TempDir()
	tree, err := Base(t.Context(), BaseOptions{Base: HostBase, Scratch: scratch})
	if err != nil {
		t.Fatal(err)
	}
	folders := *tree
	folders.Mounts = slices.DeleteFunc(slices.Clone(tree.Mounts), func(m Mount) bool { return path.Base(m.Target) == "dash" }) // addBash
	checkTree(t, &folders)
	for _, m := range folders.Mounts {
		host := m.Target == "/usr" || strings.HasPrefix(m.Target, "/lib") || m.Target == "/bin" || m.Target == "/sbin"
		made := m.Target == "/etc" && strings.HasPrefix(m.Sources[0], scratch)
		if !host && !made {
			t.Errorf("the host's %v is shown at %s", m.Sources, m.Target)
		}
	}
	etc := mountOf(tree, "/etc")[0]
	for name, want := range map[string]string{
		"passwd": "sbx_user1051:x:993:990:", "group": ":990:", "hosts": "127.0.0.1 localhost sandbox sandbox.localdomain",
		"nsswitch.conf": "hosts: files", "resolv.conf": "nameserver 127.0.0.1",
	} {
		if data, err := os.ReadFile(filepath.Join(etc, name)); err != nil || !strings.Contains(string(data), want) {
			t.Errorf("/etc/%s is %q (%v), want %q in it", name, data, err, want)
		}
	}
	for _, never := range []string{"shadow", "gshadow", "hostname", "machine-id", "fstab", "ssh", "ssl/private", "sudoers"} {
		if _, err := os.Lstat(filepath.Join(etc, never)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("/etc/%s is there (%v)", never, err)
		}
	}
	v, err := newView(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	for _, name := range []string{"/bin/sh", "/etc/ld.so.cache", "/usr/bin/env"} {
		if n, err := v.resolve(name); err != nil || !n.mode.IsRegular() {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
}

// TestBaseDirHostile: the trees of SEC-58 are refused or stay
// inside, and nothing around them changes.
func TestBaseDirHostile(t *testing.T) {
	tests := []struct {
		name  string
		files []ziptest.File
		entry string // named by the error; "" means that the tree is taken
	}{
		{"etc is a link", []ziptest.File{{Name: "etc", Mode: link, Body: "/etc"}}, "etc"},
		{"var is a link", []ziptest.File{{Name: "var", Mode: link, Body: "/var"}}, "var"},
		{"opt is a link", []ziptest.File{{Name: "opt", Mode: link, Body: "/root"}}, "opt"},
		{"var/task is a link", []ziptest.File{{Name: "var/task", Mode: link, Body: "/etc"}}, ""},
		{"var/runtime is a link", []ziptest.File{{Name: "var/runtime", Mode: link, Body: "../../.."}}, "var/runtime"},
		{"opt is a link to a file", []ziptest.File{{Name: "x"}, {Name: "opt", Mode: link, Body: "x"}}, "opt"},
		{"links of etc in a loop", []ziptest.File{{Name: "etc", Mode: link, Body: "a"}, {Name: "a", Mode: link, Body: "etc"}}, "etc"},
		{"passwd is a folder", []ziptest.File{{Name: "etc/passwd/x"}, {Name: "etc/group", Mode: fs.ModeNamedPipe}}, ""},
		{"passwd that only root may read", []ziptest.File{{Name: "etc/passwd", Mode: 0o600, Body: "mallory:x:0:0::/:\n"}}, ""},
		{"etc is a file", []ziptest.File{{Name: "etc"}}, "etc"},
		{"var is a fifo", []ziptest.File{{Name: "var", Mode: fs.ModeNamedPipe}}, "var"},
		{"proc, sys, dev and tmp are links", []ziptest.File{{Name: "proc", Mode: link, Body: "/etc"}, {Name: "sys", Mode: link, Body: "/"}, {Name: "dev", Mode: link, Body: "/dev"}, {Name: "tmp", Mode: link, Body: "/root"}}, ""},
		{"links in etc", []ziptest.File{{Name: "etc/shadow", Mode: link, Body: "/etc/shadow"}, {Name: "etc/passwd", Mode: link, Body: "/etc/passwd"}, {Name: "etc/hosts", Mode: link, Body: "../../../../etc/hosts"}}, ""},
		{"fifo in etc", []ziptest.File{{Name: "etc/pipe", Mode: fs.ModeNamedPipe}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, scratch := makeTree(t, tt.files...), t.TempDir()
			tree, err := Base(t.Context(), BaseOptions{Base: dir, Scratch: scratch})
			if tt.entry != "" {
				bad, ok := errors.AsType[*invalid.Error](err)
				if !ok || bad.Kind != invalid.ErrBase || bad.Entry != tt.entry {
					t.Errorf("error %v, want invalid.ErrBase for %s", err, tt.entry)
				}
				ziptest.WantTree(t, scratch)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkTree(t, tree)
			etc := mountOf(tree, "/etc")[0]
			if data, err := os.ReadFile(filepath.Join(etc, "passwd")); err != nil || string(data) != etcFiles["passwd"] {
				t.Errorf("passwd is %q, %v", data, err)
			}
			if _, err := os.Lstat(filepath.Join(etc, "pipe")); err == nil {
				t.Error("the fifo was copied")
			}
		})
	}
}

func TestBaseDir(t *testing.T) {
	dir := makeTree(t,
		ziptest.File{Name: "usr/bin/sh", Mode: 0o755, Body: "x"}, ziptest.File{Name: "bin", Mode: link, Body: "usr/bin"}, ziptest.File{Name: "home/"}, ziptest.File{Name: ".marker"},
		ziptest.File{Name: "etc/app/conf", Body: "1"}, ziptest.File{Name: "etc/key", Mode: 0o600}, ziptest.File{Name: "etc/hostname", Body: "image"},
		ziptest.File{Name: "etc/tool", Mode: 0o755 | fs.ModeSetuid},
		ziptest.File{Name: "opt/low", Body: "1"}, ziptest.File{Name: "var/lang/bin/python3.12", Mode: 0o755}, ziptest.File{Name: "var/task/old"},
		ziptest.File{Name: "var/run", Mode: link, Body: "../run"}, ziptest.File{Name: "var/runtime/bootstrap", Mode: 0o755, Body: "#!/bin/sh\n"}, ziptest.File{Name: "run/x"})
	tree, err := Base(t.Context(), BaseOptions{Base: dir, Scratch: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	checkTree(t, tree)
	var targets []string
	for _, m := range tree.Mounts {
		targets = append(targets, m.Target)
	}
	slices.Sort(targets)
	if want := []string{"/etc", "/opt", "/run", "/usr", "/var/lang", "/var/runtime"}; !slices.Equal(targets, want) {
		t.Errorf("mounts %q, want %q", targets, want)
	}
	slices.SortFunc(tree.Links, func(a, b Link) int { return strings.Compare(a.Path, b.Path) })
	if want := []Link{{"/bin", "usr/bin"}, {"/var/run", "../run"}}; !slices.Equal(tree.Links, want) {
		t.Errorf("links %q, want %q", tree.Links, want)
	}
	if !slices.Contains(tree.Dirs, "/home") || !slices.Contains(tree.Dirs, "/var/task") {
		t.Errorf("directories %q", tree.Dirs)
	}
	etc := mountOf(tree, "/etc")[0]
	ziptest.WantTree(t, etc, "app", "app/conf", "hostname", "tool", "passwd", "group", "hosts", "resolv.conf", "nsswitch.conf")
	if info, err := os.Stat(filepath.Join(etc, "tool")); err != nil || info.Mode() != 0o755 {
		t.Errorf("tool: %v, %v", info.Mode(), err)
	}
}

// The directories of ours may be links to directories of the tree. Those of an image stay
// links, but for /etc and /var, which are taken apart.
func TestBaseLinks(t *testing.T) {
	dir := makeTree(t,
		ziptest.File{Name: "opt", Mode: link, Body: "var/opt"}, ziptest.File{Name: "var", Mode: link, Body: "/data/./var"}, ziptest.File{Name: "data/var/opt/tool", Body: "t"},
		ziptest.File{Name: "data/var/task", Mode: link, Body: "/app"}, ziptest.File{Name: "app/x", Body: "1"}, ziptest.File{Name: "data/var/lib/y"},
		ziptest.File{Name: "data/var/runtime", Mode: link, Body: "../../client"}, ziptest.File{Name: "client/bootstrap", Mode: 0o755, Body: "#!/bin/sh\n"},
		ziptest.File{Name: "etc", Mode: link, Body: "usr/../usr/etc"}, ziptest.File{Name: "usr/etc/hostname", Body: "h"}, ziptest.File{Name: "usr/etc/passwd", Mode: link, Body: "/usr/lib/passwd"},
		ziptest.File{Name: "usr/lib/passwd", Body: "app:x:5:5::/:"})
	for _, whole := range []bool{false, true} {
		tree, err := (&baseDir{tree: newTree(), given: dir, whole: whole}).take(t.Context(), dir, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		checkTree(t, tree)
		v, err := newView(tree)
		if err != nil {
			t.Fatal(err)
		}
		defer v.close()
		want := []string{"/opt/tool", "/var/opt/tool", "/var/lib/y", "/var/runtime/bootstrap", "/etc/hostname", "/etc/passwd"}
		if whole {
			want = append(want, "/var/task/x")
		}
		for _, name := range want {
			if n, err := v.resolve(name); err != nil || !n.mode.IsRegular() {
				t.Errorf("image %v: %s: %+v, %v", whole, name, n, err)
			}
		}
		if text, err := os.ReadFile(filepath.Join(mountOf(tree, "/etc")[0], "passwd")); err != nil || !strings.Contains(string(text), "app:x:5") {
			t.Errorf("%q, %v", text, err)
		}
		if isLink := slices.Contains(tree.Links, Link{"/opt", "var/opt"}); isLink != whole {
			t.Errorf("image %v: links %v", whole, tree.Links)
		}
	}
}

// The users, groups and name services of a tree stay, with our user before them.
func TestBaseUsers(t *testing.T) {
	dir := makeTree(t, ziptest.File{Name: "etc/passwd", Body: "root:x:0:0:root:/root:/bin/sh\nsbx_user1051:x:1:1::/:\ntimesync:x:993:5::/:\nwww-data:x:33:33::/var/www:"},
		ziptest.File{Name: "etc/nsswitch.conf", Body: "passwd: compat\n"}, ziptest.File{Name: "etc/hosts", Body: "10.0.0.1 db\n"})
	tree, err := Base(t.Context(), BaseOptions{Base: dir, Scratch: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"passwd":        "sbx_user1051:x:993:990::/home/sbx_user1051:/sbin/nologin\nroot:x:0:0:root:/root:/bin/sh\ntimesync:x:993:5::/:\nwww-data:x:33:33::/var/www:\n",
		"group":         etcFiles["group"],
		"nsswitch.conf": "passwd: compat\n",
		"hosts":         etcFiles["hosts"],
	} {
		if text, err := os.ReadFile(filepath.Join(mountOf(tree, "/etc")[0], name)); err != nil || string(text) != want {
			t.Errorf("%s is %q, %v, want %q", name, text, err, want)
		}
	}
}

func TestBaseDirCaps(t *testing.T) {
	t.Run("sparse giant in etc", func(t *testing.T) {
		dir, scratch := makeTree(t, ziptest.File{Name: "etc/big"}), t.TempDir()
		if err := os.Truncate(filepath.Join(dir, "etc/big"), 1<<40); err != nil {
			t.Fatal(err)
		}
		_, err := Base(t.Context(), BaseOptions{Base: dir, Scratch: scratch})
		if !errors.Is(err, invalid.ErrTooLarge) || !strings.Contains(err.Error(), "big") {
			t.Errorf("error %v, want invalid.ErrTooLarge for big", err)
		}
		ziptest.WantTree(t, scratch)
	})
	t.Run("deep etc", func(t *testing.T) {
		dir := makeTree(t, ziptest.File{Name: "etc/" + strings.Repeat("d/", 40)})
		if _, err := Base(t.Context(), BaseOptions{Base: dir, Scratch: t.TempDir()}); !errors.Is(err, invalid.ErrTooLarge) {
			t.Errorf("error %v, want invalid.ErrTooLarge", err)
		}
	})
	t.Run("wide root", func(t *testing.T) {
		var files []ziptest.File
		for i := range maxBaseNames + 1 {
			files = append(files, ziptest.File{Name: "d" + strings.Repeat("x", i%200) + string(rune('a'+i/200)) + "/"})
		}
		if _, err := Base(t.Context(), BaseOptions{Base: makeTree(t, files...), Scratch: t.TempDir()}); !errors.Is(err, invalid.ErrBase) {
			t.Errorf("error %v, want invalid.ErrBase", err)
		}
	})
	t.Run("missing", func(t *testing.T) {
		if _, err := Base(t.Context(), BaseOptions{Base: filepath.Join(t.TempDir(), "none"), Scratch: t.TempDir()}); !errors.Is(err, invalid.ErrNotFound) {
			t.Errorf("error %v, want invalid.ErrNotFound", err)
		}
	})
}
