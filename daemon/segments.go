package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/message"
)

// logsName is the folder of the logs of functions, below the state folder.
const logsName = "logs"

// segments are the files with the logs of functions, whose names are numbers. Which function
// has which is the worker's business: nobody here reads them.
type segments struct {
	dir *os.File
	cfg message.LogConfig
}

// openSegments opens the folder, which it makes if it is missing, and removes the files of
// numbers that the operator does not allow any more.
func openSegments(stateDir string, cfg message.LogConfig) (_ *segments, err error) {
	path := filepath.Join(stateDir, logsName)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the folder of logs: %w", err)
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open the folder of logs: %w", err)
	}
	s := &segments{dir: dir, cfg: cfg}
	if err := os.NewSyscallError("fchmod", unix.Fchmod(int(dir.Fd()), 0o700)); err != nil {
		return nil, errors.Join(err, s.close())
	}
	all, err := s.numbers()
	for _, n := range all {
		if n > cfg.Segments {
			err = errors.Join(err, os.Remove(filepath.Join(path, strconv.Itoa(n))))
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *segments) close() error { return s.dir.Close() }

// numbers returns the numbers of the files that exist.
func (s *segments) numbers() (list []int, err error) {
	entries, err := os.ReadDir(s.dir.Name())
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 && strconv.Itoa(n) == e.Name() {
			list = append(list, n)
		}
	}
	return list, nil
}

// config returns the configuration for a worker.
func (s *segments) config() (cfg message.LogConfig, err error) {
	cfg = s.cfg
	cfg.Existing, err = s.numbers()
	return cfg, err
}

// open implements privsep.Config.Segment. The worker chooses the number.
func (s *segments) open(number uint64, fresh bool) (*os.File, error) {
	if number < 1 || number > uint64(s.cfg.Segments) {
		return nil, fmt.Errorf("there is no segment %d of the logs, only %d", number, s.cfg.Segments)
	}
	flags := unix.O_RDWR | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if fresh {
		flags |= unix.O_CREAT | unix.O_TRUNC
	}
	name := strconv.FormatUint(number, 10)
	fd, err := unix.Openat(int(s.dir.Fd()), name, flags, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(s.dir.Name(), name), Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
