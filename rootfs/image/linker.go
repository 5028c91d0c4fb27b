package image

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// linker gives files of layers more names in a tree. A file system bounds the names of one file,
// and other images can use up those of a layer's file: then a copy takes its place, one for as
// many names as a file can have.
type linker struct {
	copies map[fileID]*os.File // by the file that they are copies of
}

type fileID struct{ dev, ino uint64 }

func newLinker() *linker { return &linker{copies: map[fileID]*os.File{}} }

func (l *linker) close() {
	for _, f := range l.copies {
		f.Close()
	}
}

// link gives the file that is name in from the name newName in to, which must be free.
func (l *linker) link(from *os.File, name string, to *os.File, newName string) error {
	err := unix.Linkat(int(from.Fd()), name, int(to.Fd()), newName, 0)
	if !errors.Is(err, unix.EMLINK) {
		return err
	}
	source, err := openAt(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return unix.EMLINK
	}
	id := fileID{st.Dev, st.Ino}
	if made := l.copies[id]; made != nil {
		err := unix.Linkat(int(made.Fd()), "", int(to.Fd()), newName, unix.AT_EMPTY_PATH)
		if !errors.Is(err, unix.EMLINK) {
			return err
		}
		made.Close()
		delete(l.copies, id)
	}
	made, err := copyAt(source, info, to, newName)
	if err == nil {
		l.copies[id] = made
	}
	return err
}

// copyAt makes a copy with the same permissions and times.
func copyAt(source *os.File, info fs.FileInfo, to *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(to.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	made := os.NewFile(uintptr(fd), name)
	_, err = io.Copy(made, source)
	if err == nil {
		err = made.Chmod(info.Mode().Perm())
	}
	if err == nil {
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(info.ModTime().UnixNano())}
		err = unix.UtimesNanoAt(int(to.Fd()), name, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		made.Close()
		return nil, err
	}
	return made, nil
}
