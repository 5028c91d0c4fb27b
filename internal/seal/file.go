package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// linePrefix begins each line of a file of host keys that has a key: the rest of the line is
// the key in hexadecimal. The first key seals. Empty lines and lines that begin with # say
// nothing.
const linePrefix = "sandboxd-host-key-1:"

// maxFile bounds a file of host keys.
const maxFile = 64 << 10

// Parse reads the contents of a file of host keys.
func Parse(text []byte) (*Ring, error) {
	keys, err := parseKeys(text)
	if err != nil {
		return nil, err
	}
	return New(keys...)
}

func parseKeys(text []byte) ([][]byte, error) {
	var keys [][]byte
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		// Errors must not repeat a line: it may be a key.
		digits, ok := strings.CutPrefix(line, linePrefix)
		if !ok {
			return nil, fmt.Errorf("line %d does not begin with %s", n+1, linePrefix)
		}
		key, err := hex.DecodeString(digits)
		if err != nil || len(key) != KeySize {
			return nil, fmt.Errorf("line %d has no key of %d hexadecimal digits", n+1, 2*KeySize)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// ReadFile reads a file of host keys, such as a systemd credential, without parsing it. The
// file must belong to this process's user, and nobody else may read or write it. It is on
// the disk then, with its name: what is encrypted with a key must not outlive the key.
func ReadFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("host key %s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("host key %s is no regular file", path)
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("host key %s belongs to user %d, not to %d; chown it", path, st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		return nil, fmt.Errorf("host key %s can be used by others (mode %04o); chmod it to 0600, and rotate the key if it was read", path, st.Mode&0o7777)
	case st.Size > maxFile:
		return nil, fmt.Errorf("host key %s has %d bytes, of at most %d", path, st.Size, maxFile)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	// Who made or rotated it may have been killed before it came to this.
	if err := errors.Join(f.Sync(), syncFolder(filepath.Dir(path))); err != nil {
		return nil, fmt.Errorf("host key %s: %w", path, err)
	}
	return text, nil
}

// syncFolder has the disk keep the names in a folder.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Create makes a file with a new host key, of mode 0600. The error is [fs.ErrExist] if there
// is one, which stays as it is. A file that is there is whole, whatever ends this process.
func Create(path string) error {
	return write(path, [][]byte{newKey()}, os.Link)
}

// Rotate puts a new host key before those of a file. What is sealed from now on, by who
// reads the file again, is sealed with it.
func Rotate(path string) error {
	return change(path, func(keys [][]byte) ([][]byte, error) {
		return append([][]byte{newKey()}, keys...), nil
	})
}

// Retire removes all host keys but the first from a file, when everything is sealed with it,
// whose id is given. What is sealed with another one can never be read again. It is an error
// if the first key is another one by now.
func Retire(path, first string) error {
	return change(path, func(keys [][]byte) ([][]byte, error) {
		r, err := New(keys[0])
		if err == nil && r.IDs()[0] != first {
			err = fmt.Errorf("its first key is %s and no longer %s: it was rotated again meanwhile", r.IDs()[0], first)
		}
		return keys[:1], err
	})
}

// change replaces the keys of a file. Calls at the same time, of other processes too, come one
// after the other.
func change(path string, f func([][]byte) ([][]byte, error)) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("host key %s: %w", path, err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("host key %s: lock its folder: %w", path, err)
	}
	keys, err := read(path)
	if err != nil {
		return err
	}
	if keys, err = f(keys); err != nil {
		return fmt.Errorf("host key %s: %w", path, err)
	}
	return write(path, keys, os.Rename)
}

func newKey() []byte {
	key := make([]byte, KeySize)
	rand.Read(key) // never fails
	return key
}

func read(path string) ([][]byte, error) {
	text, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	keys, err := parseKeys(text)
	if err == nil {
		_, err = New(keys...)
	}
	if err != nil {
		return nil, fmt.Errorf("host key %s: %w", path, err)
	}
	return keys, nil
}

// write writes a file of host keys beside path and has place put it there.
func write(path string, keys [][]byte, place func(from, to string) error) error {
	var text bytes.Buffer
	text.WriteString("# Host keys of sandboxd. The first one encrypts, the others decrypt only.\n# Without them the secrets in the store are lost.\n")
	for _, k := range keys {
		fmt.Fprintf(&text, "%s%x\n", linePrefix, k)
	}
	return writeText(path, text.Bytes(), place)
}

// WriteFile makes a file of host keys, of mode 0600, with the text of another one, which it does
// not parse. The error is [fs.ErrExist] if there is one, which stays as it is.
func WriteFile(path string, text []byte) error {
	if len(text) > maxFile {
		return fmt.Errorf("host key %s would have %d bytes, of at most %d", path, len(text), maxFile)
	}
	return writeText(path, text, os.Link)
}

// writeText writes a file beside path and has place put it there.
func writeText(path string, text []byte, place func(from, to string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".host-key-*") // of mode 0600
	if err != nil {
		return fmt.Errorf("host key %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = place(f.Name(), path)
	}
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fs.ErrExist // the rest of it names the temporary file
		}
		return fmt.Errorf("host key %s: %w", path, err)
	}
	if err := syncFolder(dir); err != nil {
		return fmt.Errorf("host key %s: %w", path, err)
	}
	return nil
}
