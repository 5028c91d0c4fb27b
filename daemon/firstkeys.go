package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seal"
)

// Names below the state folder of what root keeps for the control process.
const (
	hostKeyFile  = "host.key"
	firstKeyFile = "first-key"
)

// rootKeys are the host key and the first access key. Root keeps both in files of its own. It
// reads the host key without understanding it.
type rootKeys struct {
	hostKey  string            // path of the file
	firstKey message.AccessKey // zero if its file was removed
	file     string            // of the first key
	text     string            // of that file, if it was made just now
}

// openRootKeys finds the keys for the state folder. It makes those that are missing if the
// folder is new. hostKey is the operator's file, "" for one in the state folder. endpoint and
// region are for the text of a new file.
func openRootKeys(state, hostKey, endpoint, region string, isNew bool) (k rootKeys, err error) {
	k.hostKey, k.file = hostKey, filepath.Join(state, firstKeyFile)
	if hostKey == "" {
		k.hostKey = filepath.Join(state, hostKeyFile)
		if isNew {
			if err := seal.Create(k.hostKey); err != nil && !errors.Is(err, fs.ErrExist) {
				return k, err
			}
		}
	}
	switch _, err := seal.ReadFile(k.hostKey); {
	case errors.Is(err, fs.ErrNotExist):
		return k, fmt.Errorf("%w; it encrypts the access keys and the environments in %s: copy it there from the host or the backup that has it, with owner root and mode 0600", err, filepath.Join(state, controlName))
	case err != nil:
		return k, err
	}
	if isNew {
		if err := k.makeFirst(endpoint, region); err != nil && !errors.Is(err, fs.ErrExist) {
			return k, fmt.Errorf("make the first access key: %w", err)
		}
	}
	if k.firstKey, err = readFirst(k.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return k, fmt.Errorf("read the first access key: %w", err)
	}
	return k, nil
}

// makeFirst makes the file of the first access key, which is whole if it is there.
func (k *rootKeys) makeFirst(endpoint, region string) error {
	made := message.NewAccessKey()
	text := fmt.Sprintf("export AWS_ENDPOINT_URL_LAMBDA=%s AWS_DEFAULT_REGION=%s %s%s %s%s\n", endpoint, region, idName, made.ID, secretName, made.Secret)
	dir, err := os.Open(filepath.Dir(k.file))
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := os.CreateTemp(dir.Name(), ".first-key-*") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.WriteString(f, text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), k.file); err != nil { // fails if there is one
		return err
	}
	k.text = text
	return dir.Sync()
}

// What precedes the id and the secret in the file.
const (
	idName     = "AWS_ACCESS_KEY_ID="
	secretName = "AWS_SECRET_ACCESS_KEY="
)

// maxFirstKey bounds the file.
const maxFirstKey = 4096

// readFirst reads the file of the first access key. The key is zero if the file has none.
func readFirst(path string) (k message.AccessKey, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return k, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return k, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return k, fmt.Errorf("%s must be a file of user %d with mode 0600, and is one of user %d with mode %04o; remove it if that key is not needed", path, os.Geteuid(), st.Uid, st.Mode&0o7777)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFirstKey))
	if err != nil {
		return k, err
	}
	for _, word := range strings.Fields(string(text)) {
		if id, ok := strings.CutPrefix(word, idName); ok {
			k.ID = id
		}
		if secret, ok := strings.CutPrefix(word, secretName); ok {
			k.Secret = secret
		}
	}
	if k.ID == "" || k.Secret == "" {
		return message.AccessKey{}, nil
	}
	return k, nil
}

// announce tells the operator of a first access key that was made just now. Its secret goes to
// a terminal only: whatever else standard error is may keep it.
func (s *services) announce(stderr io.Writer) {
	k := &s.folder.keys
	if k.text == "" {
		return
	}
	if !IsTerminal(s.std.Err) {
		s.d.log.WithField("file", k.file).Info("made the first access key; root can read it there")
		return
	}
	fmt.Fprintf(stderr, "The first access key, which may do everything, is in %s:\n\n    %s\nWith that, try:\n\n    aws lambda list-functions\n\n", k.file, k.text)
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
