package layer

import (
	"archive/zip"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// packTime is the time of all files of a layer, so that the same files make the same zip.
var packTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// pack writes the files of a folder to w as a zip. Modes are those that a layer needs: all
// can be read by others. Links stay links; other special files are left out.
func pack(dir string, w io.Writer) error {
	buffered := bufio.NewWriterSize(w, 1<<20)
	archive := zip.NewWriter(buffered)
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !d.Type().IsRegular() && d.Type() != fs.ModeSymlink {
			return err
		}
		files++
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return add(archive, name, path)
	})
	if err == nil && files == 0 {
		err = fmt.Errorf("the installation has made no file")
	}
	if err == nil {
		err = archive.Close()
	}
	if err == nil {
		err = buffered.Flush()
	}
	return err
}

// add adds a file or a link to the archive.
func add(archive *zip.Writer, name, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	header := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: packTime}
	if info.Mode()&fs.ModeSymlink != 0 {
		header.SetMode(fs.ModeSymlink | 0o777)
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		w, err := archive.CreateHeader(header)
		if err == nil {
			_, err = io.WriteString(w, target)
		}
		return err
	}
	header.SetMode(0o644)
	if info.Mode()&0o100 != 0 {
		header.SetMode(0o755)
	}
	w, err := archive.CreateHeader(header)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// sums reads a file in the form of sha256sum(1): the sums by name.
func sums(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		sum, name, ok := strings.Cut(line, " ")
		name = strings.TrimLeft(name, " *")
		if _, err := hex.DecodeString(sum); !ok || err != nil || len(sum) != 2*sha256.Size || name == "" || name != filepath.Base(name) {
			return nil, fmt.Errorf("%s: the line %q is not in the form of sha256sum: a hash, two spaces and the name of a file", path, line)
		}
		found[name] = strings.ToLower(sum)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s names no file", path)
	}
	return found, nil
}

// verify returns an error unless the folder has exactly the files of want, with their sums.
// No other process may run that could change them.
func verify(dir string, want map[string]string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		sum, ok := want[e.Name()]
		if !ok {
			return fmt.Errorf("%s was installed, but the lock file does not name it", e.Name())
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is not a file", e.Name())
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if got := sha256.Sum256(text); hex.EncodeToString(got[:]) != sum {
			return fmt.Errorf("%s has the hash %x, and the lock file wants %s: the registry has another file than the one that was locked", e.Name(), got, sum)
		}
	}
	for name := range want {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%s is in the lock file, but was not installed", name)
		}
	}
	return nil
}
