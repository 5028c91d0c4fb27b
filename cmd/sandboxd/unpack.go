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
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/image"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// unpackCommand is the name under which the binary takes apart what strangers have made:
// a zip, or an image. Its argument says which step, for who lists processes.
const unpackCommand = "sandboxd-unpack"

// unpackOrder is what such a process has to do; one field is set. It comes on standard input.
// The files that the job needs are descriptors from firstFD on. On standard output the
// process says what is wrong.
type unpackOrder struct {
	Zip    *extract.ZipJob
	Read   *image.ReadJob
	Unpack *image.UnpackJob
}

const firstFD = 3

// isUnpack reports whether this process is such a one.
func isUnpack() bool { return os.Args[0] == unpackCommand }

// runUnpack is main for that process.
func runUnpack() int {
	var o unpackOrder
	err := gob.NewDecoder(os.Stdin).Decode(&o)
	if err == nil {
		err = o.bound()
	}
	if err == nil {
		err = o.run(context.Background())
	}
	if err != nil {
		_, _ = os.Stdout.Write(invalid.Encode(err))
		return exitFunction
	}
	return exitOK
}

func (o *unpackOrder) run(ctx context.Context) error {
	first := os.NewFile(firstFD, "first")
	second := func() *os.File { return os.NewFile(firstFD+1, "second") } // if there is none, the number is somebody else's
	switch {
	case o.Zip != nil:
		return o.Zip.Run(ctx, first, second(), nil)
	case o.Read != nil && o.Read.Source == image.Archive:
		return o.Read.Run(ctx, first, second())
	case o.Read != nil:
		return o.Read.Run(ctx, first, nil)
	case o.Unpack != nil:
		return o.Unpack.Run(ctx, first, second())
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

// bound bounds this process before it has seen a byte of a stranger's. Nothing else is
// its user's, so that all of its children count.
func (o *unpackOrder) bound() error {
	memory, file := uint64(maxUnpackMemory), uint64(0)
	switch {
	case o.Zip != nil:
		file = uint64(o.Zip.Limits.UnzippedBytes)
	case o.Unpack != nil:
		memory, file = maxLayersMemory, uint64(o.Unpack.Limits.Bytes)
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
	if o.Read != nil && o.Read.Source == image.Registry {
		return confine.FilesAndNetwork()
	}
	return confine.Files()
}

// firstVictim makes a process the first to go when the host runs out of memory. It would
// inherit that it is the last, as the daemon is.
func firstVictim(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0)
}

// maxUnpackOutput bounds what the process may say.
const maxUnpackOutput = 64 << 10

// maxUnpackSilence is how long the end of its output is waited for once it has ended. It
// may have sent the output's descriptor to who does not read that message.
const maxUnpackSilence = 2 * time.Second

// bounded keeps the beginning of what is written to it.
type bounded struct{ b []byte }

func (w *bounded) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), maxUnpackOutput-len(w.b))]...)
	return len(p), nil
}

// unzip runs the job in a process of its own.
func (s *session) unzip(ctx context.Context, job extract.ZipJob, zip, tree *os.File) error {
	p := unprivileged{what: "zip", about: job.File, order: unpackOrder{Zip: &job}, files: []*os.File{zip, tree}, tree: tree, idle: idleAlone}
	return s.runUnprivileged(ctx, &p)
}

// readImage runs the job in a process of its own, with network only where it needs some.
func (s *session) readImage(ctx context.Context, job image.ReadJob, conn, archive *os.File) error {
	p := unprivileged{what: "image", about: job.Image, order: unpackOrder{Read: &job}, files: []*os.File{conn}, network: job.Source == image.Registry, idle: idleOf(job.Source)}
	if archive != nil {
		p.files = append(p.files, archive)
	}
	return s.runUnprivileged(ctx, &p)
}

// unpackImage runs the job in a process of its own.
func (s *session) unpackImage(ctx context.Context, job image.UnpackJob, layers, tree *os.File) error {
	p := unprivileged{what: "layers", about: job.Image, order: unpackOrder{Unpack: &job}, files: []*os.File{layers, tree}, tree: tree, idle: idleOf(job.Source)}
	return s.runUnprivileged(ctx, &p)
}

// idleOf is for processes that take apart an image from there.
func idleOf(s image.Source) idleness {
	if s == image.Registry {
		return idleOnNetwork
	}
	return idleAlone
}

func (s *session) runUnprivileged(ctx context.Context, p *unprivileged) (err error) {
	uid, err := s.leases.Acquire(s.instance.Dir())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.leases.Release(uid)) }()
	p.moves = &s.moves
	return p.run(ctx, uid, s.log)
}

// unprivileged is a process for one order: a user that nothing else of the host has,
// without capability, which may open nothing but the folder that it fills.
type unprivileged struct {
	what    string // its argument
	about   string // the file or image, for messages
	order   unpackOrder
	files   []*os.File    // that it has open
	tree    *os.File      // one of them, or nil: the folder
	network bool          // that of the host, or none
	idle    idleness      // when it is ended for doing nothing
	moves   *atomic.Int64 // see idleness.watch
}

// networkFiles are what names and certificates are looked up in.
var networkFiles = []string{
	"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/protocols", "/etc/mdns.allow",
	"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/var/lib/ca-certificates",
}

// networkEnv are the operator's variables about the network that are passed on.
var networkEnv = []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"}

// confinement says what the process needs, its environment, and its namespaces.
func (p *unprivileged) confinement() (needs confine.Needs, env []string, namespaces int) {
	namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	env = []string{"GOMAXPROCS=4"} // so that many CPUs do not make many threads
	if p.tree != nil {
		needs.Folders, needs.Links = []*os.File{p.tree}, p.order.Unpack != nil
	}
	if !p.network {
		return needs, env, namespaces | unix.CLONE_NEWNET
	}
	needs.Connect, needs.Files = true, slices.Clone(networkFiles)
	for _, name := range networkEnv {
		value, ok := os.LookupEnv(name)
		if !ok {
			continue
		}
		if strings.HasPrefix(name, "SSL_CERT_") { // files; it works in another folder than we
			list := []string{value}
			if name == "SSL_CERT_DIR" {
				list = filepath.SplitList(value)
			}
			for i, path := range list {
				if abs, err := filepath.Abs(path); err == nil && path != "" {
					list[i] = abs
				}
			}
			value = strings.Join(list, string(filepath.ListSeparator))
			needs.Files = append(needs.Files, list...)
		}
		env = append(env, name+"="+value)
	}
	return needs, env, namespaces
}

// run runs the process as uid, and returns when it has ended.
func (p *unprivileged) run(ctx context.Context, uid uint32, log *logrus.Logger) error {
	if p.tree != nil {
		if err := p.tree.Chown(int(uid), int(uid)); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	if err := gob.NewEncoder(&text).Encode(&p.order); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	needs, env, namespaces := p.confinement()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env, cmd.Dir = []string{unpackCommand, p.what}, env, "/"
	var said bounded
	cmd.Stdout, cmd.Stderr = &said, null
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.ExtraFiles = p.files
	cmd.WaitDelay = maxUnpackSilence
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid},
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true, // the operator's terminal is not its, to type into
	}
	started, ordered, ended := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is confined
		// Go tries out with a child, once, what the kernel's pidfds can do. In a PID namespace
		// that would be the first process, and its end that of the namespace.
		if p, err := os.FindProcess(os.Getpid()); err == nil {
			_ = p.Release()
		}
		// What the operator's shell has left open is none of that process's.
		_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // fails before Linux 5.11
		err := needs.Thread()
		if errors.Is(err, confine.ErrNoLandlock) {
			log.WithError(err).Warnf("%s is extracted without it; see 'sandboxd doctor'", p.about)
			err = nil
		}
		if err == nil {
			// It is the first process of its PID namespace: its end is that of whatever it has started.
			err = os.NewSyscallError("unshare", unix.Unshare(namespaces))
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
			victim = confine.Check(cmd.Process.Pid) // by FilterThread; the process adds a filter of its own
		}
		if victim == nil {
			_, _ = stdin.Write(text.Bytes()) // if the process has ended, Wait says why
		}
		stdin.Close() // without an order it ends
		go func() {
			if err := p.idle.watch(ctx, cmd.Process.Pid, p.moves); err != nil {
				stop(err)
			}
		}()
		close(ordered)
		if err = <-ended; victim != nil {
			err = victim
		}
	}
	var exit *exec.ExitError
	switch {
	case errors.Is(context.Cause(ctx), errStalled):
		return fmt.Errorf("extract %s: %w; see whether the disks answer that it is on and that --state-dir is on, or the registry, and try again", p.about, context.Cause(ctx))
	case ctx.Err() != nil:
		return fmt.Errorf("extract %s: %w", p.about, ctx.Err())
	case errors.As(err, &exit) && exit.ExitCode() == exitFunction:
		return invalid.Decode(p.about, said.b)
	case exit != nil && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		return fmt.Errorf("extract %s: the process was killed: the host is out of memory, or it took more than %v of CPU time", p.about, maxUnpackCPU)
	case err != nil:
		return fmt.Errorf("extract %s: %w", p.about, err)
	}
	return nil
}
