package rootfs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// usrTree makes a /usr with the given programs in bin, and links there.
func usrTree(t *testing.T, programs []string, links map[string]string) (*Tree, string) {
	t.Helper()
	usr, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(usr, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range programs {
		if err := os.WriteFile(filepath.Join(usr, "bin", name), []byte("#!"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(usr, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	tree := newTree()
	tree.addMount("/usr", usr)
	tree.Links = append(tree.Links, Link{Path: "/bin", Target: "usr/bin"})
	return tree, usr
}

// In a base whose /bin/sh is dash, bash is shown in its place, and only there.
func TestShellIsBash(t *testing.T) {
	for name, tt := range map[string]struct {
		programs []string
		links    map[string]string
		want     string // target of the mount
	}{
		"Debian":           {[]string{"dash", "bash"}, map[string]string{"sh": "dash"}, "/usr/bin/dash"},
		"through a link":   {[]string{"dash", "bash"}, map[string]string{"sh": "/usr/bin/posix", "posix": "dash"}, "/usr/bin/dash"},
		"without bash":     {[]string{"dash"}, map[string]string{"sh": "dash"}, ""},
		"bash already":     {[]string{"bash"}, map[string]string{"sh": "bash"}, ""},
		"busybox and bash": {[]string{"busybox", "bash"}, map[string]string{"sh": "busybox"}, ""},
		"no shell":         {[]string{"bash"}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			tree, usr := usrTree(t, tt.programs, tt.links)
			if err := addBash(tree); err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if len(tree.Mounts) != 1 {
					t.Errorf("mounts %+v, want only /usr", tree.Mounts)
				}
				return
			}
			if m := tree.Mounts[len(tree.Mounts)-1]; m.Target != tt.want || !slices.Equal(m.Sources, []string{filepath.Join(usr, "bin/bash")}) {
				t.Errorf("mount %+v, want bash at %s", m, tt.want)
			}
			v, err := newView(tree)
			if err != nil {
				t.Fatal(err)
			}
			defer v.close()
			if n, err := v.resolve("/bin/sh"); err != nil || !n.mode.IsRegular() {
				t.Errorf("the view finds %+v, %v as /bin/sh", n, err)
			}
		})
	}
}

// A Python function finds python and python3 of its runtime's version first in its PATH.
func TestPythonLinks(t *testing.T) {
	for name, tt := range map[string]struct {
		programs []string
		links    map[string]string
		own      bool // the base has a /var/lang
		want     string
	}{
		"by version":          {[]string{"python3.11", "python3.12"}, map[string]string{"python3": "python3.12"}, false, "/usr/bin/python3.11"},
		"by the general name": {[]string{"python3.12"}, map[string]string{"python3": "python3.12"}, false, ""},
		"through a link":      {nil, map[string]string{"python3": "../lib/python3.11"}, false, "/usr/bin/python3"},
		"a base of Lambda":    {[]string{"python3.11"}, nil, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			tree, usr := usrTree(t, tt.programs, tt.links)
			if err := os.Mkdir(filepath.Join(usr, "lib"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(usr, "lib/python3.11"), nil, 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.own {
				tree.addDir("/var/lang")
			}
			f := &Function{Tree: *tree}
			v, err := newView(tree)
			if err != nil {
				t.Fatal(err)
			}
			defer v.close()
			f.addPython(v, "3.11")
			var want []Link
			if tt.want != "" {
				want = []Link{{"/var/lang/bin/python", tt.want}, {"/var/lang/bin/python3", tt.want}}
			}
			if got := f.Links[1:]; !slices.Equal(got, want) {
				t.Errorf("links %+v, want %+v", got, want)
			}
			if made := slices.Contains(f.Dirs, "/var/lang/bin"); made != (want != nil) {
				t.Errorf("the folder of the links is there: %v", made)
			}
		})
	}
}

// ES modules are found in layers, as by NODE_PATH on Lambda.
func TestNodeLinks(t *testing.T) {
	layered, own := Link{"/var/node_modules", "/opt/nodejs/node22/node_modules"}, Link{"/node_modules", "/opt/nodejs/node_modules"}
	for name, tt := range map[string]struct {
		dir  string // that the base has
		want []Link
	}{
		"base without them":       {"/run", []Link{layered, own}},
		"base with one":           {"/var/node_modules", []Link{own}},
		"base with the other":     {"/node_modules", []Link{layered}},
		"base with a similar one": {"/var/node", []Link{layered, own}},
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := usrTree(t, nil, nil)
			tree.addDir(tt.dir)
			f := &Function{Tree: *tree}
			v, err := newView(tree)
			if err != nil {
				t.Fatal(err)
			}
			defer v.close()
			f.addNode(v, "22")
			if got := f.Links[len(tree.Links):]; !slices.Equal(got, tt.want) {
				t.Errorf("links %+v, want %+v", got, tt.want)
			}
		})
	}
}
