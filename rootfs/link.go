package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
)

// errLeadsNowhere says that a link of a tree leads to nothing in the tree.
var errLeadsNowhere = errors.New("leads to no directory or file of the tree")

// resolveIn follows a clean, relative path below root link by link, with root as /, and
// returns the path of what it leads to, which has no link in it.
func resolveIn(root *os.Root, rel string) (string, error) {
	at, hops := ".", 0
	for pending := strings.Split(rel, "/"); len(pending) > 0; {
		part := pending[0]
		pending = pending[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at) // of "." it is "."
			continue
		}
		next := path.Join(at, part)
		info, err := root.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			return "", errLeadsNowhere
		}
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if len(pending) > 0 && !info.IsDir() {
				return "", errLeadsNowhere
			}
			at = next
			continue
		}
		target, err := root.Readlink(next)
		if err != nil {
			return "", err
		}
		parts := strings.Split(target, "/")
		if hops++; hops > maxLinkHops || len(parts)+len(pending) > maxPathParts {
			return "", errLeadsNowhere
		}
		if path.IsAbs(target) {
			at = "."
		}
		pending = append(parts, pending...)
	}
	return at, nil
}
