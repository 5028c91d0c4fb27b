package seal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func parseFile(t *testing.T, path string) *Ring {
	t.Helper()
	text, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFileOfKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host-key")
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", st.Mode(), err)
	}
	first := parseFile(t, path)
	sealed := seal(t, first, "secret")

	if err := Create(path); !errors.Is(err, fs.ErrExist) || strings.Contains(err.Error(), ".host-key-") {
		t.Errorf("create where there is one: %v", err)
	}
	if got := parseFile(t, path).IDs(); got[0] != first.IDs()[0] {
		t.Errorf("keys %v after the second Create, want %v", got, first.IDs())
	}

	if err := Rotate(path); err != nil {
		t.Fatal(err)
	}
	both := parseFile(t, path)
	if ids := both.IDs(); len(ids) != 2 || ids[0] == first.IDs()[0] || ids[1] != first.IDs()[0] {
		t.Errorf("keys %v after the rotation, want a new one and %v", ids, first.IDs())
	}
	again, _, err := both.Reseal(sealed, row)
	if err != nil {
		t.Fatal(err)
	}
	if err := Retire(path, first.IDs()[0]); err == nil || !strings.Contains(err.Error(), "rotated again") {
		t.Errorf("retire all but a key that is not the first: %v", err)
	}
	if err := Retire(path, both.IDs()[0]); err != nil {
		t.Fatal(err)
	}
	last := parseFile(t, path)
	if got, err := last.Open(again, row); err != nil || string(got) != "secret" || len(last.IDs()) != 1 {
		t.Errorf("opened %q, %v with keys %v", got, err, last.IDs())
	}

	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// Files that others may know or have made are refused, with what to do.
func TestFilesThatAreRefused(t *testing.T) {
	good := fmt.Sprintf("%s%x\n", linePrefix, oldKey)
	for name, tt := range map[string]struct {
		make func(path string) error
		want string
	}{
		"read by the group": {func(p string) error { return os.WriteFile(p, []byte(good), 0o640) }, "mode 0640); chmod it to 0600"},
		"read by others":    {func(p string) error { return os.WriteFile(p, []byte(good), 0o604) }, "mode 0604"},
		"a link": {func(p string) error {
			if err := os.WriteFile(p+"2", []byte(good), 0o600); err != nil {
				return err
			}
			return os.Symlink(p+"2", p)
		}, "too many levels of symbolic links"},
		"a pipe":  {func(p string) error { return unix.Mkfifo(p, 0o600) }, "no regular file"},
		"large":   {func(p string) error { return os.WriteFile(p, make([]byte, maxFile+1), 0o600) }, "of at most 65536"},
		"missing": {func(string) error { return nil }, "no such file"},
		"of another user": {func(p string) error {
			if err := os.WriteFile(p, []byte(good), 0o600); err != nil {
				return err
			}
			return os.Chown(p, 65534, 65534)
		}, "belongs to user 65534"},
	} {
		if name == "of another user" && os.Geteuid() != 0 {
			continue // only root can give files away
		}
		path := filepath.Join(t.TempDir(), "host-key")
		if err := tt.make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadFile(path); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v; want %q with the path", name, err, tt.want)
		}
	}
}

func TestParse(t *testing.T) {
	line := fmt.Sprintf("%s%x", linePrefix, oldKey)
	for text, want := range map[string]string{
		"":                            "no host key",
		"# nothing\n\n":               "no host key",
		line:                          "",
		"#x\r\n\t" + line + "\r\n\n#": "",
		line + "00":                   "line 1 has no key of 64 hexadecimal digits",
		"\n" + line[:len(line)-1]:     "line 2 has no key",
		line + "\n" + line:            "twice",
		"0101010101":                  "line 1 does not begin with " + linePrefix,
	} {
		_, err := Parse([]byte(text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "0101") {
			t.Errorf("%q: the error tells the key: %v", text, err)
		}
	}
}
