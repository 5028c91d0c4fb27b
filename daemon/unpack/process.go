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

// command is argv[0] of an extraction process. Its one argument names the step, for people
// who list processes.
const command = "sandboxd-unpack"

// task is the work of one extraction process; exactly one field is set. The process reads
// it from standard input, finds the files of the job as descriptors from firstFD on, and
// writes an error to standard output (invalid.Encode).
type task struct {
	Zip     *extract.ZipJob
	Read    *image.ReadJob
	Unpack  *image.UnpackJob
	Install *InstallJob
}

const firstFD = 3

// exitFailed is the exit code of a process that has written an error to standard output.
const exitFailed = 1

// IsProcess reports whether this process is an extraction process: then main must call
// [Main].
func IsProcess() bool { return os.Args[0] == command }

// Main runs an extraction process and returns its exit code.
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
	if t.Install != nil {
		return t.Install.run(openInstallFiles())
	}
	first := os.NewFile(firstFD, "first")
	second := func() *os.File { return os.NewFile(firstFD+1, "second") } // only for jobs that have a second file
	switch {
	case t.Zip != nil:
		return t.Zip.Run(ctx, first, second(), nil)
	case t.Read != nil && t.Read.Source == image.Archive:
		return t.Read.Run(ctx, first, second(), os.NewFile(firstFD+2, "third"))
	case t.Read != nil:
		return t.Read.Run(ctx, first, nil, nil)
	case t.Unpack != nil:
		return t.Unpack.Run(ctx, first, second())
	}
	return errors.New("the task is empty")
}

// Resource limits of an extraction process. The longest list of a zip's entries takes 190
// MiB, and the names of an image may take more. The Go runtime uses about ten threads.
const (
	maxUnpackMemory  = 512 << 20
	maxLayersMemory  = 1 << 30
	maxUnpackThreads = 64
	maxUnpackFiles   = 256 // descriptors
	maxUnpackCPU     = 30 * time.Minute
)

// memory returns the memory limit of the process in bytes.
func (t *task) memory() uint64 {
	if t.Unpack != nil {
		return maxLayersMemory
	}
	return maxUnpackMemory
}

// bound limits the resources of this process, and confines it, before it reads untrusted
// data. RLIMIT_NPROC counts all threads of the user, and the user has no other process.
func (t *task) bound() error {
	memory, file := t.memory(), uint64(0)
	switch {
	case t.Zip != nil:
		file = uint64(t.Zip.Limits.UnzippedBytes)
	case t.Unpack != nil:
		file = uint64(t.Unpack.Limits.Bytes)
	case t.Install != nil:
		file = uint64(t.Install.Bytes)
	case t.Read != nil:
		file = uint64(t.Read.Spool) + 1 // the first byte too many is an error of ours
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
	if t.Install != nil || t.Read != nil && t.Read.Source == image.Registry {
		return confine.FilesAndNetwork()
	}
	return confine.Files()
}
