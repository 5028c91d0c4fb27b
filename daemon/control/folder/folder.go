// Package folder reads the code of functions from folders of the host that the operator has
// named. The process that uses it is confined to these folders and is no root; what is in them
// may be hostile, and may change meanwhile. So everything is opened below the folder's open
// directory (openat2 with RESOLVE_BENEATH), one name after the other.
package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
	"github.com/sandboxd/sandboxd/lambda"
)

// A Folder is a folder of the operator's.
type Folder struct {
	Name string   // that the operator has given it
	Path string   // absolute and clean
	Dir  *os.File // open; the caller of [New] keeps it open
}

// Folders are the folders that code may come from. They are safe for concurrent use.
type Folders struct{ list []Folder }

// New returns the folders of a list.
func New(list []Folder) *Folders { return &Folders{list} }

// Open opens code by its path: an absolute one below a folder, or one that begins with the name
// of a folder. It returns the bytes of a zip: the file itself, or a directory that is packed while
// it is read. The errors that it returns, and those of reading, are a [*lambda.Error] if they are
// for the client. The caller must Close the reader.
func (f *Folders) Open(ctx context.Context, given string) (io.ReadCloser, error) {
	in, below, err := f.find(given)
	if err != nil {
		return nil, err
	}
	file, st, err := open(in.Dir, below, 0)
	if err != nil {
		return nil, in.explain(below, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return &zipFile{file, in, below}, nil
	case unix.S_IFDIR:
		return pack(ctx, in, file, below), nil
	}
	file.Close()
	return nil, refuse("%s in the folder %s is %s: name a directory or a zip", below, in.Name, kindOf(st.Mode))
}

// find returns the folder that a path lies in, the innermost of several, and the path below it.
func (f *Folders) find(given string) (in *Folder, below string, err error) {
	clean, length := path.Clean(given), 0
	for i := range f.list {
		root := f.list[i].Path
		if !path.IsAbs(clean) {
			root = f.list[i].Name
		}
		if rest, ok := strings.CutPrefix(clean+"/", strings.TrimSuffix(root, "/")+"/"); ok && (in == nil || len(root) > length) {
			in, below, length = &f.list[i], strings.TrimSuffix(rest, "/"), len(root)
		}
	}
	switch {
	case in != nil && below == "":
		return in, ".", nil
	case in != nil:
		return in, below, nil
	case len(f.list) == 0:
		return nil, "", refuse("The path %.1024q: this host has no folders for code; add one under folders: in the configuration file of sandboxd serve, or send the code as ZipFile", given)
	}
	var names []string
	for _, folder := range f.list {
		names = append(names, folder.Name)
	}
	return nil, "", refuse("The path %.1024q is in none of the folders %s: name one below them, as %s/PATH or by its absolute path, or add its folder under folders: in the configuration file of sandboxd serve",
		given, strings.Join(names, ", "), names[0])
}

// explain says to the client why what is below a folder cannot be opened.
func (in *Folder) explain(below string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return refuse("The folder %s has no %.1024q", in.Name, below)
	case errors.Is(err, unix.EXDEV):
		return refuse("%.1024q leads out of the folder %s by a link: name the place itself, and add its folder under folders: in the configuration file of sandboxd serve", below, in.Name)
	case errors.Is(err, unix.ELOOP):
		return refuse("%.1024q in the folder %s has links in a circle, or one of /proc: remove them", below, in.Name)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return refuse("%.1024q in the folder %s cannot be read by sandboxd, which reads as any user: chmod -R o+rX it", below, in.Name)
	case errors.Is(err, errChanging):
		return refuse("%.1024q in the folder %s changes while it is read: try again", below, in.Name)
	}
	return fmt.Errorf("read %s in the folder %s: %w", below, in.Name, err)
}

func refuse(format string, args ...any) error {
	return &lambda.Error{Status: http.StatusBadRequest, Type: "InvalidParameterValueException", Message: fmt.Sprintf(format, args...)}
}

// errChanging reports that a name has become something else between two looks.
var errChanging = errors.New("it changes")

// maxTries bounds how often a name is looked up while others are renamed beside it.
const maxTries = 16

// open opens what has a name below a directory, for reading if it is a file or a directory, and
// else to look at only. Links are followed below the directory unless flags has O_NOFOLLOW.
func open(dir *os.File, name string, flags uint64) (*os.File, *unix.Stat_t, error) {
	// A device or a pipe does something when it is opened, so look first.
	looked, st, err := openAs(dir, name, flags|unix.O_PATH)
	if err != nil {
		return nil, nil, err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return looked, st, nil
	}
	looked.Close()
	file, st, err := openAs(dir, name, flags|unix.O_RDONLY|unix.O_NONBLOCK)
	if err == nil && st.Mode&unix.S_IFMT != kind {
		file.Close()
		err = errChanging
	}
	if err != nil {
		return nil, nil, err
	}
	return file, st, nil
}

// openAs opens with flags, and nothing outside of the directory whatever the links say.
func openAs(dir *os.File, name string, flags uint64) (file *os.File, st *unix.Stat_t, err error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	err = descriptor.Use(dir, func(at int) (err error) {
		fd := -1
		for range maxTries {
			fd, err = unix.Openat2(at, name, &how)
			if err != unix.EAGAIN && err != unix.EINTR {
				break
			}
		}
		if err == nil {
			file = os.NewFile(uintptr(fd), name)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	st = new(unix.Stat_t)
	if err := descriptor.Use(file, func(fd int) error { return unix.Fstat(fd, st) }); err != nil {
		file.Close()
		return nil, nil, os.NewSyscallError("fstat", err)
	}
	return file, st, nil
}

// kindOf names what a mode is of, with its article.
func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFIFO:
		return "a named pipe"
	case unix.S_IFBLK, unix.S_IFCHR:
		return "a device"
	case unix.S_IFLNK:
		return "a link"
	}
	return "neither a file nor a directory"
}

// zipFile is a zip in a folder.
type zipFile struct {
	*os.File
	in    *Folder
	below string
}

// Read implements io.Reader.
func (z *zipFile) Read(p []byte) (int, error) {
	n, err := z.File.Read(p)
	if err != nil && err != io.EOF {
		err = z.in.explain(z.below, err)
	}
	return n, err
}
