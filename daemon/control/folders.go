package control

import (
	"os"

	"github.com/sandboxd/sandboxd/daemon/control/folder"
	"github.com/sandboxd/sandboxd/internal/message"
)

// openFolders takes the operator's folders, which the process has begun with.
func openFolders(list []message.Folder) (folders *folder.Folders, closeAll func()) {
	var open []folder.Folder
	for i, f := range list {
		open = append(open, folder.Folder{Name: f.Name, Path: f.Path, Dir: os.NewFile(uintptr(message.FoldersFD+i), f.Path)})
	}
	return folder.New(open), func() {
		for _, f := range open {
			f.Dir.Close()
		}
	}
}
