package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// etcFiles are files of /etc that sandboxd makes: in every sandbox, or, those of etcKept, where
// the base has none of its own. The user is the one of ENV-28; names of the loopback are those that the
// Telemetry API uses as destinations (sandbox, sandbox.localdomain). Where a sandbox
// may look names up, the daemon answers on the loopback's port 53; elsewhere lookups end
// at once, since nothing listens there.
var etcFiles = map[string]string{
	"passwd": "root:x:0:0:root:/root:/sbin/nologin\n" +
		"sbx_user1051:x:993:990::/home/sbx_user1051:/sbin/nologin\n" +
		"nobody:x:65534:65534:nobody:/:/sbin/nologin\n",
	"group": "root:x:0:\nsbx_user1051:x:990:\nnogroup:x:65534:\n",
	"hosts": "127.0.0.1 localhost sandbox sandbox.localdomain\n" +
		"::1 localhost ip6-localhost ip6-loopback\n",
	"resolv.conf":   "nameserver 127.0.0.1\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
}

// etcKept are the files of etcFiles that a base may have itself: programs look their own users
// up, and end if they do not find them. What is there of our lines in it is added, before its
// own: programs take the first line with a number.
var etcKept = map[string][]string{
	"passwd":        {"sbx_user1051:x:993:990::/home/sbx_user1051:/sbin/nologin"},
	"group":         {"sbx_user1051:x:990:"},
	"nsswitch.conf": nil,
}

// maxEtcKept bounds a file of etcKept.
const maxEtcKept = 1 << 20

// keepEtcFiles puts the base's files of etcKept in the place of ours. They may be links, which
// lead to files of the base.
func (b *baseDir) keepEtcFiles(files map[string]string) error {
	for name, lines := range etcKept {
		rel := path.Join("etc", name)
		text, err := b.readPublic(rel)
		switch {
		case err != nil:
			return b.invalid(rel, "cannot be read", "", invalid.Cause(err))
		case text == "":
			continue
		}
		for _, line := range lines {
			text = withLine(text, line)
		}
		files[name] = text
	}
	return nil
}

// withLine returns the text of a table with the line in the place of all that have its name.
func withLine(text, line string) string {
	name, _, _ := strings.Cut(line, ":")
	var out strings.Builder
	out.WriteString(line + "\n")
	for l := range strings.Lines(text) {
		if !strings.HasPrefix(l, name+":") {
			out.WriteString(l)
		}
	}
	if !strings.HasSuffix(out.String(), "\n") {
		out.WriteString("\n")
	}
	return out.String()
}

// readPublic reads a small file of the tree that everybody may read. It returns "" for
// everything else, which the sandbox user could not read either.
func (b *baseDir) readPublic(rel string) (string, error) {
	real, err := resolveIn(b.root, rel)
	if errors.Is(err, errLeadsNowhere) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	f, err := b.root.OpenFile(real, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o004 == 0 {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxEtcKept+1))
	if len(text) > maxEtcKept {
		err = fmt.Errorf("has more than %s", invalid.Megabytes(maxEtcKept))
	}
	return string(text), err
}

// hostEtc is what a sandbox on the host's base sees of the host's /etc: what
// programs of /usr read, nothing that says who the host is or what it serves. Each
// is a pattern of path.Match; a directory comes with all that everybody may read.
var hostEtc = []string{
	"alternatives", // links of Debian's update-alternatives, such as java
	"ld.so.cache", "ld.so.conf", "ld.so.conf.d",
	"localtime", "timezone", "locale.alias", "os-release", "debian_version",
	"services", "protocols", "mime.types", "gai.conf",
	"ssl/openssl.cnf", "ssl/certs", // never ssl/private
	"pki/tls/cert.pem", "pki/tls/certs", "pki/tls/openssl.cnf", "pki/ca-trust/extracted", "crypto-policies", // Fedora
	"maven/m2.conf", "maven/logging", // what mvn starts with; never its settings, which have passwords
	"java", "java-*", "python3", "python3.*", "perl", "nodejs", "fonts",
}

// etcMaker makes a new /etc.
type etcMaker struct {
	scratch  string // the folder that it is made in
	from     string // where src is, for messages
	src      *os.Root
	patterns []string          // of what is taken of src; nil means all
	own      map[string]string // files in the place of those of src
}

// make returns the folder of the new /etc.
func (m *etcMaker) make(ctx context.Context) (dir string, err error) {
	made, err := os.MkdirTemp(m.scratch, "etc-")
	if err != nil {
		return "", fmt.Errorf("make /etc: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(made))
		}
	}()
	if err := os.Chmod(made, 0o755); err != nil {
		return "", fmt.Errorf("make /etc: %w", err)
	}
	dst, err := os.OpenRoot(made)
	if err != nil {
		return "", fmt.Errorf("make /etc: %w", err)
	}
	defer dst.Close()
	if m.src != nil {
		c := newCopier(ctx, m.from, m.src, dst, func(rel string) bool { _, ours := m.own[rel]; return ours })
		if err := c.copyMatching(m.patterns); err != nil {
			return "", err
		}
	}
	for name, content := range m.own {
		if err := writeFile(filepath.Join(made, name), content, 0o644); err != nil {
			return "", err
		}
	}
	return made, nil
}

// copyMatching copies the patterns' matches, or all if patterns is nil. A pattern
// has its wildcard in a name directly below the root.
func (c *copier) copyMatching(patterns []string) error {
	if patterns == nil {
		return c.copyDir(".", 0)
	}
	names, err := dirNames(c.src, ".", maxCopyEntries)
	if err != nil {
		return fmt.Errorf("list %s: %w", c.from, err)
	}
	for _, pattern := range patterns {
		matches := []string{pattern}
		if path.Dir(pattern) == "." {
			matches = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
				ok, _ := path.Match(pattern, name)
				return !ok
			})
		} else if _, err := c.src.Lstat(pattern); err != nil {
			continue // this distribution does not have it
		} else if err := c.makeParents(pattern); err != nil {
			return err
		}
		for _, rel := range matches {
			if err := c.copy(rel, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeParents makes the directories above rel.
func (c *copier) makeParents(rel string) error {
	for i := range len(rel) {
		if rel[i] != '/' {
			continue
		}
		err := c.dst.Mkdir(rel[:i], 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = c.dst.Chmod(rel[:i], 0o755)
		}
		if err != nil {
			return fmt.Errorf("make /etc: %w", err)
		}
	}
	return nil
}

// writeFile makes a new file with exactly these permissions.
func writeFile(name, content string, perm os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, content); err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	if err := f.Chmod(perm); err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	return f.Close()
}
