//go:build integration

package extract

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Nothing of what a process has left changes hands that is another user's, or that has
// a name elsewhere: it may be a file of the host's.
func TestAdoptOwners(t *testing.T) {
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
