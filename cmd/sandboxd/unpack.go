package main

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/confine"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rootfs"
)

// unpackCommand is the name under which the binary extracts one zip.
const unpackCommand = "sandboxd-unpack"

// The descriptors of that process, beside the job on standard input. On its standard
// output it says what is wrong with the zip.
const (
	zipFD  = 3 + iota // readable
	treeFD            // an empty folder
)

// isUnpack reports whether this process is to extract a zip.
func isUnpack() bool { return os.Args[0] == unpackCommand }

// runUnpack is main for that process.
func runUnpack() int {
	var job rootfs.ZipJob
	err := boundUnpack()
	if err == nil {
		err = gob.NewDecoder(os.Stdin).Decode(&job)
	}
	if err == nil {
		err = job.Run(context.Background(), os.NewFile(zipFD, "zip"), os.NewFile(treeFD, "tree"), nil)
	}
	if err != nil {
		_, _ = os.Stdout.Write(rootfs.EncodeError(err))
		return exitFunction
	}
	return exitOK
}

// What an extraction may take of the host. The longest list of entries takes 190 MiB, and
// the Go runtime some ten threads.
const (
	maxUnpackMemory  = 512 << 20
	maxUnpackThreads = 64
)

// boundUnpack bounds this process before it has seen a byte of the zip. Nothing else is
// its user's, so that all of its children count.
func boundUnpack() error {
	for resource, most := range map[int]uint64{
		unix.RLIMIT_DATA: maxUnpackMemory, unix.RLIMIT_NPROC: maxUnpackThreads, unix.RLIMIT_MEMLOCK: 0, unix.RLIMIT_MSGQUEUE: 0, unix.RLIMIT_CORE: 0,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	return nil
}

// firstVictim makes a process the first to go when the host runs out of memory. It would
// inherit that it is the last, as the daemon is.
func firstVictim(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0)
}

// maxUnpackOutput bounds what the process may say.
const maxUnpackOutput = 64 << 10

// bounded keeps the beginning of what is written to it.
type bounded struct{ b []byte }

func (w *bounded) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), maxUnpackOutput-len(w.b))]...)
	return len(p), nil
}

// unzip runs the job in a process of its own: a user that nothing else of the host has,
// without capability and network, which may open nothing but the folder.
func (s *session) unzip(ctx context.Context, job rootfs.ZipJob, zip, tree *os.File) (err error) {
	uid, err := s.leases.Acquire(s.instance)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.leases.Release(uid)) }()
	if err := tree.Chown(int(uid), int(uid)); err != nil {
		return err
	}
	var order bytes.Buffer
	if err := gob.NewEncoder(&order).Encode(&job); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env, cmd.Dir = []string{unpackCommand}, []string{"GOMAXPROCS=4"}, "/" // so that many CPUs do not make many threads
	var said bounded
	cmd.Stdout, cmd.Stderr = &said, null
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.ExtraFiles = []*os.File{zip, tree}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid},
		Pdeathsig:  syscall.SIGKILL,
	}
	started, ordered, ended := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is confined
		// What the operator's shell has left open is none of that process's.
		_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // fails before Linux 5.11
		err := confine.Thread(tree)
		if errors.Is(err, confine.ErrNoLandlock) {
			s.log.WithError(err).Warn("the zip is extracted without it; see 'sandboxd doctor'")
			err = nil
		}
		if err == nil {
			// It is the first process of its PID namespace: its end is that of whatever it has started.
			err = os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWPID|unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS))
		}
		if err == nil {
			err = runc.FilterThread() // which allows no more namespaces
		}
		if err == nil {
			err = cmd.Start()
		}
		if started <- err; err == nil {
			<-ordered           // it is not reaped before
			ended <- cmd.Wait() // here, because with the thread the process ends
		}
	}()
	if err = <-started; err == nil {
		victim := firstVictim(cmd.Process.Pid)
		if victim == nil {
			_, _ = stdin.Write(order.Bytes()) // if the process has ended, Wait says why
		}
		stdin.Close() // without an order it ends
		close(ordered)
		if err = <-ended; victim != nil {
			err = victim
		}
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("extract %s: %w", job.File, ctx.Err())
	case errors.As(err, &exit) && exit.ExitCode() == exitFunction:
		return rootfs.DecodeError(job.File, said.b)
	case err != nil:
		return fmt.Errorf("extract %s: %w", job.File, err)
	}
	return nil
}
