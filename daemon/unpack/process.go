package unpack

import (
	"context"
	"encoding/gob"
	"errors"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/image"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// command is the name, argv[0], under which the binary is such a process. Its argument says
// which step it does, for people who list processes.
const command = "sandboxd-unpack"

// task is what such a process has to do; one field is set. It comes on standard input.
// The files that the job needs are descriptors from firstFD on. On standard output the
// process says what is wrong.
type task struct {
	Zip    *extract.ZipJob
	Read   *image.ReadJob
	Unpack *image.UnpackJob
}

const firstFD = 3

// exitFailed is the exit code of a process that has said on standard output what is wrong.
const exitFailed = 1

// IsProcess reports whether this process is one that takes apart what strangers have made.
func IsProcess() bool { return os.Args[0] == command }

// Main is main for such a process. It returns the exit code.
func Main() int {
	var t task
	err := gob.NewDecoder(os.Stdin).Decode(&t)
	if err == nil {
		err = t.bound()
	}
	if err == nil {
		err = t.run(context.Background())
	}
	if err != nil {
		_, _ = os.Stdout.Write(invalid.Encode(err))
		return exitFailed
	}
	return 0
}

func (t *task) run(ctx context.Context) error {
	first := os.NewFile(firstFD, "first")
	second := func() *os.File { return os.NewFile(firstFD+1, "second") } // if there is none, the number is somebody else's
	switch {
	case t.Zip != nil:
		return t.Zip.Run(ctx, first, second(), nil)
	case t.Read != nil && t.Read.Source == image.Archive:
		return t.Read.Run(ctx, first, second())
	case t.Read != nil:
		return t.Read.Run(ctx, first, nil)
	case t.Unpack != nil:
		return t.Unpack.Run(ctx, first, second())
	}
	return errors.New("there is nothing to do")
}

// What such a process may take of the host. The longest list of a zip's entries takes 190
// MiB, the names of an image may take more; the Go runtime has some ten threads.
const (
	maxUnpackMemory  = 512 << 20
	maxLayersMemory  = 1 << 30
	maxUnpackThreads = 64
	maxUnpackFiles   = 256 // open
	maxUnpackCPU     = 30 * time.Minute
)

// memory is how many bytes of memory the process may have.
func (t *task) memory() uint64 {
	if t.Unpack != nil {
		return maxLayersMemory
	}
	return maxUnpackMemory
}

// bound bounds this process before it has seen a byte of a stranger's. Its user has no
// other process, so the limit of threads counts those of its children too.
func (t *task) bound() error {
	memory, file := t.memory(), uint64(0)
	switch {
	case t.Zip != nil:
		file = uint64(t.Zip.Limits.UnzippedBytes)
	case t.Unpack != nil:
		file = uint64(t.Unpack.Limits.Bytes)
	}
	debug.SetMemoryLimit(int64(memory) / 4 * 3)
	for resource, most := range map[int]uint64{
		unix.RLIMIT_DATA: memory, unix.RLIMIT_FSIZE: file, unix.RLIMIT_NOFILE: maxUnpackFiles, unix.RLIMIT_NPROC: maxUnpackThreads,
		unix.RLIMIT_CPU: uint64(maxUnpackCPU.Seconds()), unix.RLIMIT_MEMLOCK: 0, unix.RLIMIT_MSGQUEUE: 0, unix.RLIMIT_CORE: 0,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	if t.Read != nil && t.Read.Source == image.Registry {
		return confine.FilesAndNetwork()
	}
	return confine.Files()
}
