package inspect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MemoryFile is a descriptor of a file that is in memory only (memfd_create(2)).
type MemoryFile struct {
	FD   int    `json:"fd"`
	Name string `json:"name"` // chosen by whoever made it
	Own  bool   `json:"own"`  // it was made in the user namespace of the process
}

// readMemoryFiles lists the process's files in memory.
func readMemoryFiles(dir string, p *Process) error {
	p.MemoryFiles = []MemoryFile{}
	entries, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, "fd", e.Name())
		target, err := os.Readlink(path)
		name, ok := strings.CutPrefix(target, "/memfd:")
		if err != nil || !ok {
			continue // closed since, or another file
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		owner, err := mapInside(filepath.Join(dir, "uid_map"), st.Uid)
		if err != nil {
			return err
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		p.MemoryFiles = append(p.MemoryFiles, MemoryFile{fd, strings.TrimSuffix(name, " (deleted)"), owner != overflowID})
	}
	return nil
}

// foreignMemory lists the files in memory that were not made in the sandbox: those are
// nobody's but its own.
func foreignMemory(s subject) (string, error) {
	var foreign []string
	for _, f := range s.MemoryFiles {
		if !f.Own {
			foreign = append(foreign, fmt.Sprintf("%d:%s", f.FD, f.Name))
		}
	}
	return listing(foreign), nil
}

// foreignFiles lists the descriptors that lead to a file of a mount that the process
// does not see.
func foreignFiles(s subject) (string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "fd"))
	if err != nil {
		return "", err
	}
	var foreign []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(s.dir, "fd", e.Name()))
		if err != nil || !filepath.IsAbs(target) || strings.HasPrefix(target, "/memfd:") {
			continue // closed since, in memory, or a pipe, socket or the like
		}
		info, err := readStatusFile(filepath.Join(s.dir, "fdinfo", e.Name()))
		if gone(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		if !slices.ContainsFunc(s.mounts, func(m mount) bool { return m.id == info["mnt_id"] }) {
			foreign = append(foreign, e.Name()+":"+target)
		}
	}
	return listing(foreign), nil
}
