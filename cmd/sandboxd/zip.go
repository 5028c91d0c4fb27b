package main

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// zipFolder returns a zip of what is in a folder, as a temporary file without a name. Links
// stay links. The zip of the same content is the same.
func zipFolder(dir string) (_ *os.File, err error) {
	f, err := os.CreateTemp("", "sandboxd-deploy-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("zip %s: %w", dir, errors.Join(err, f.Close()))
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	z := zip.NewWriter(f)
	empty := true
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		empty = false
		return addToZip(z, root, path, d)
	})
	switch {
	case err != nil:
		return nil, err
	case empty:
		return nil, errors.New("the folder is empty")
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// addToZip adds what is at path below root.
func addToZip(z *zip.Writer, root *os.Root, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	head := &zip.FileHeader{Name: filepath.ToSlash(path), Method: zip.Deflate}
	head.SetMode(info.Mode())
	switch {
	case info.IsDir():
		head.Name += "/"
		_, err := z.CreateHeader(head)
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(path)
		if err != nil {
			return err
		}
		w, err := z.CreateHeader(head)
		if err == nil {
			_, err = io.WriteString(w, target)
		}
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is neither a file, a folder nor a link; remove it", path)
	}
	content, err := root.Open(path)
	if err != nil {
		return err
	}
	defer content.Close()
	w, err := z.CreateHeader(head)
	if err == nil {
		_, err = io.Copy(w, content)
	}
	return err
}
