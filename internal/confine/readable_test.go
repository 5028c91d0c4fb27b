package confine

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/host/hosttest"
)

// What is readable can be read and listed, and nothing else.
func TestLandlockReadable(t *testing.T) {
	hosttest.Need(t, NeedLandlock(1))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "victim"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	out := confinedBut(t, Needs{Readable: []*os.File{open}}, "landlock", true, "DIR="+dir, "ADDR="+l.Addr().String())
	for name, want := range map[string]string{"read": "true", "list": "true", "write": "false", "create": "false", "mkdir": "false", "remove": "false"} {
		if !strings.Contains(out, name+": "+want+"\n") {
			t.Errorf("%s: want %s in\n%s", name, want, out)
		}
	}
}
