package postgres

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sandboxd/sandboxd/state"
)

// folderFile is the file in a folder of this host that belongs to a store. What the store
// refers to, such as blobs, is near it.
const folderFile = "elsewhere"

// ReadFolder returns the epoch of the store in a database that a folder belongs to, "" if it
// belongs to none.
func ReadFolder(folder string) (epoch string, err error) {
	b, err := os.ReadFile(filepath.Join(folder, folderFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

// WriteFolder makes a folder belong to the store with that epoch. It is on the disk then.
func WriteFolder(folder, epoch string) error {
	temp := filepath.Join(folder, folderFile+".new")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(epoch)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(folder, folderFile)); err != nil {
		return err
	}
	return state.SyncFolder(folder)
}
