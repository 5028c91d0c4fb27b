package layer

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	for _, name := range Names() {
		r, err := Find(name)
		if err != nil || r.Name != name {
			t.Errorf("Find(%q) = %+v, %v", name, r, err)
		}
	}
	for _, name := range []string{"", "python", "python2.7", "nodejs20", "nodejs.x", "provided.al2023", "python3.11.x", "dotnet8"} {
		if _, err := Find(name); err == nil || !strings.Contains(err.Error(), "nodejs20.x") {
			t.Errorf("Find(%q): %v; want an error that names the runtimes", name, err)
		}
	}
}

// TestLocks: every file that is installed has a hash in a lock file, and no lock file names
// a host. Only the client of Node may run scripts.
func TestLocks(t *testing.T) {
	host := regexp.MustCompile(`(https?:)?//[a-z]`)
	for _, name := range Names() {
		r, err := Find(name)
		if err != nil {
			t.Fatal(err)
		}
		files, err := r.Lock()
		if err != nil {
			t.Fatal(err)
		}
		if files == nil && !strings.HasPrefix(name, "ruby") || files != nil && strings.HasPrefix(name, "ruby") {
			t.Errorf("%s: lock files %v", name, files)
		}
		for file, text := range files {
			switch filepath.Base(file) {
			case "requirements.txt":
				checkRequirements(t, string(text))
			case "package-lock.json":
				checkPackageLock(t, string(text))
			case "pom.xml":
				continue // names its schema
			}
			if m := host.Find(text); m != nil && !bytes.Contains(text, []byte(`"funding"`)) {
				t.Errorf("%s: %s names a host: %s", name, file, m)
			}
		}
	}
}

func checkRequirements(t *testing.T, text string) {
	for _, requirement := range regexp.MustCompile(`(?m)^\S`).Split(strings.ReplaceAll(text, "\\\n", " "), -1)[1:] {
		if !strings.Contains(requirement, "--hash=sha256:") {
			t.Errorf("requirement without a hash: %s", requirement)
		}
	}
}

func checkPackageLock(t *testing.T, text string) {
	if packages, hashes := strings.Count(text, `"node_modules/`), strings.Count(text, `"integrity": "sha512-`); packages == 0 || packages != hashes {
		t.Errorf("%d packages have %d hashes", packages, hashes)
	}
	if strings.Contains(text, `"resolved"`) {
		t.Error("the lock file names addresses")
	}
	if n := strings.Count(text, `"hasInstallScript": true`); n > strings.Count(text, `"node_modules/aws-lambda-ric"`) {
		t.Errorf("%d packages have scripts", n)
	}
}

// What needs a compiler is said before anything is installed.
func TestCompilerIsNeeded(t *testing.T) {
	r, err := Find("nodejs20.x")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, tt := range []struct {
		programs []string // that the base has got besides
		want     string
	}{
		{nil, "needs node, npm"},
		{[]string{"node", "npm", "make", "python3", "tar", "xz"}, "a part of aws-lambda-ric is compiled: making the layer of nodejs20.x needs cmake, g++, autoreconf, libtoolize,"},
		{[]string{"cmake", "g++", "autoreconf", "libtoolize"}, "needs the header files of Node"},
	} {
		for _, name := range tt.programs {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := (&node{job: &job{runtime: r}}).prepare(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}

func TestPack(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/b.txt": 0o600, "a/run": 0o700} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("b.txt", filepath.Join(dir, "a/link")); err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	for _, w := range []io.Writer{&first, &second} {
		if err := pack(dir, w); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same files make two zips")
	}
	archive, err := zip.NewReader(bytes.NewReader(first.Bytes()), int64(first.Len()))
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, f := range archive.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %v %s", f.Name, f.Mode(), text))
	}
	if want := []string{"a/b.txt -rw-r--r-- a/b.txt", "a/link Lrwxrwxrwx b.txt", "a/run -rwxr-xr-x a/run"}; !slices.Equal(got, want) {
		t.Errorf("the zip has %q, want %q", got, want)
	}
	if err := pack(t.TempDir(), io.Discard); err == nil {
		t.Error("no file makes a layer")
	}
}

func TestVerify(t *testing.T) {
	sum := func(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }
	for _, tt := range []struct{ files, lock, want string }{
		{"a b", sum("a") + "  a\n" + sum("b") + " *b\n", ""},
		{"a b", sum("a") + "  a\n", "b was installed, but the lock file does not name it"},
		{"a", sum("a") + "  a\n" + sum("b") + "  b\n", "b is in the lock file, but was not installed"},
		{"a", sum("x") + "  a\n", "the lock file wants " + sum("x")},
		{"a", "", "names no file"},
		{"a", "12  a\n", "sha256sum"},
		{"a", sum("a") + "  ../a\n", "sha256sum"},
	} {
		dir, lock := t.TempDir(), filepath.Join(t.TempDir(), "SHA256SUMS")
		for _, name := range strings.Fields(tt.files) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(lock, []byte(tt.lock), 0o644); err != nil {
			t.Fatal(err)
		}
		want, err := sums(lock)
		if err == nil {
			err = verify(dir, want)
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("files %s with lock %q: %v, want %q", tt.files, tt.lock, err, tt.want)
		}
	}
}

// TestEndOthersOutside: outside of a sandbox nothing is killed.
func TestEndOthersOutside(t *testing.T) {
	if err := endOthers(); err == nil {
		t.Fatal("no error outside of a sandbox")
	}
}
