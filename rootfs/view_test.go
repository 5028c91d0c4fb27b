package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
)

// viewOf makes a view of /opt over layers, lowest first, and of /var/task.
func viewOf(t *testing.T, task string, layers ...string) *view {
	t.Helper()
	tree := &Tree{Links: []Link{{"/bin", "opt/bin"}, {"/loop", "loop2"}, {"/loop2", "/loop"}}}
	tree.addDir("/var")
	tree.addMount("/var/task", task)
	tree.addMount("/opt", layers...)
	v, err := newView(tree)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.close)
	return v
}

func TestViewResolve(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	task := makeTree(t, ziptest.File{Name: "plain"}, ziptest.File{Name: "host", Mode: link, Body: secret}, ziptest.File{Name: "up", Mode: link, Body: "../../../../../.." + secret},
		ziptest.File{Name: "layer", Mode: link, Body: "/opt/bin/tool"}, ziptest.File{Name: "dir", Mode: link, Body: "../../opt/bin/"}, ziptest.File{Name: "self", Mode: link, Body: "self"},
		ziptest.File{Name: "locked/x", Mode: 0o755}, ziptest.File{Name: "around", Mode: link, Body: "../task/./plain"})
	if err := os.Chmod(filepath.Join(task, "locked"), 0o700); err != nil {
		t.Fatal(err)
	}
	low := makeTree(t, ziptest.File{Name: "bin/tool", Body: "low"}, ziptest.File{Name: "bin/only-low"}, ziptest.File{Name: "hidden/x"}, ziptest.File{Name: "x/y"}, ziptest.File{Name: "file"})
	mid := makeTree(t, ziptest.File{Name: "hidden"}, ziptest.File{Name: "x", Mode: link, Body: "bin"}, ziptest.File{Name: "bin/mid"})
	top := makeTree(t, ziptest.File{Name: "bin/tool", Body: "top"}, ziptest.File{Name: "hidden/z"}, ziptest.File{Name: "x/top"}, ziptest.File{Name: "file/now-a-folder"})
	v := viewOf(t, task, low, mid, top)
	tests := []struct{ path, want, blocked string }{
		{"/var/task/plain", "/var/task/plain", ""},
		{"/var/task/host", "", ""},
		{"/var/task/up", "", ""},
		{"/var/task/self", "", ""},
		{"/loop", "", ""},
		{"/var/task/layer", "/opt/bin/tool", ""},
		{"/var/task/dir/only-low", "/opt/bin/only-low", ""},
		{"/var/task/around", "/var/task/plain", ""},
		{"/var/task/locked/x", "/var/task/locked/x", "/var/task/locked"},
		{"/var/task/plain/x", "", ""},
		{"/bin/tool", "/opt/bin/tool", ""},
		{"/bin/mid", "/opt/bin/mid", ""},
		{"/opt/hidden/z", "/opt/hidden/z", ""},
		{"/opt/hidden/x", "", ""}, // a file in the middle hides the folder below
		{"/opt/x/top", "/opt/x/top", ""},
		{"/opt/x/y", "", ""}, // so does a link
		{"/opt/file/now-a-folder", "/opt/file/now-a-folder", ""},
		{"/opt", "/opt", ""},
		{"/", "/", ""},
		{"/../..//opt/./bin/../bin/tool", "/opt/bin/tool", ""},
		{"/nothing", "", ""},
	}
	for _, tt := range tests {
		n, err := v.resolve(tt.path)
		if tt.want == "" {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %+v, %v, want fs.ErrNotExist", tt.path, n, err)
			}
			continue
		}
		if err != nil || n.path != tt.want || n.blocked != tt.blocked {
			t.Errorf("%s: %+v, %v, want %s (blocked %q)", tt.path, n, err, tt.want, tt.blocked)
		}
	}
	tool, err := v.resolve("/opt/bin/tool")
	if err != nil {
		t.Fatal(err)
	}
	f, err := tool.open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content := make([]byte, 3)
	if _, err := f.Read(content); err != nil || string(content) != "top" {
		t.Errorf("tool is %q, %v: the later layer wins", content, err)
	}
	bin, err := v.resolve("/opt/bin")
	if err != nil {
		t.Fatal(err)
	}
	if names, err := v.list(bin); err != nil || !slices.Equal(names, []string{"mid", "only-low", "tool"}) {
		t.Errorf("list %q, %v", names, err)
	}
}

// TestViewLinkBomb: links whose targets grow end in an error, not in memory.
func TestViewLinkBomb(t *testing.T) {
	task := makeTree(t, ziptest.File{Name: "b", Mode: link, Body: strings.Repeat("./b/", 900) + "b"})
	if _, err := viewOf(t, task, t.TempDir()).resolve("/var/task/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
}
