package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/message"
)

// openCodeFolders opens the folders from which code may come, for the control process, which can
// open nothing else. None of them may have a part of its own folder: clients would get its files
// as code.
func openCodeFolders(list []message.Folder, own string) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeFiles(files)
		}
	}()
	for _, f := range list {
		path, err := filepath.EvalSymlinks(f.Path)
		if err == nil && (isBelow(own, path) || isBelow(path, own)) {
			return nil, fmt.Errorf("--config: folder %s: %s and the folder of the store, %s, lie in one another; choose another folder, or another --state-dir", f.Name, f.Path, own)
		}
		var file *os.File
		if err == nil {
			file, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("--config: folder %s: %w; make it, or remove it from the file", f.Name, err)
		}
		files = append(files, file)
	}
	return files, nil
}

// isBelow reports whether a path is that of a folder or lies in it.
func isBelow(path, folder string) bool {
	return strings.HasPrefix(path+"/", strings.TrimSuffix(folder, "/")+"/")
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
