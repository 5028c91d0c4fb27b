// Package unpack takes apart what strangers have made, zips and images, in processes of
// their own: each is a user that nothing else of the host has, without capabilities, and may
// open nothing but the folder that it fills. [Main] is such a process; a [Runner] starts
// them.
package unpack

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
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/image"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// firstVictim makes a process the first to go when the host runs out of memory. It would
// inherit that it is the last, as the daemon is.
func firstVictim(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0)
}

const (
	maxOutput = 64 << 10 // bytes of what the process says
	maxCrash  = 8 << 10  // bytes of what the Go runtime says when it ends the process; the reason comes first
	// maxSilence is how long the end of its output is waited for once it has ended. It may
	// have sent the output's descriptor somewhere, in a message that nobody reads.
	maxSilence = 2 * time.Second
)

// bounded keeps the beginning of what is written to it, at most most bytes.
type bounded struct {
	b    []byte
	most int
}

func (w *bounded) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), w.most-len(w.b))]...)
	return len(p), nil
}

// Runner starts the processes. Its methods are safe for concurrent use; each returns when its
// process has ended.
type Runner struct {
	Leases *subid.Leases // of the processes' users
	Owner  string        // instance folder of the daemon
	Log    *logrus.Logger

	moves atomic.Int64 // see idleness.watch
}

// Zip extracts a zip. See store.Store.
func (r *Runner) Zip(ctx context.Context, job extract.ZipJob, zip, tree *os.File) error {
	return r.run(ctx, &unprivileged{what: "zip", about: job.File, task: task{Zip: &job}, files: []*os.File{zip, tree}, tree: tree, idle: idleAlone})
}

// ReadImage reads an image, with a network only where it needs one. See image.Options.
func (r *Runner) ReadImage(ctx context.Context, job image.ReadJob, conn, archive *os.File) error {
	p := &unprivileged{what: "image", about: job.Image, task: task{Read: &job}, files: []*os.File{conn}, network: job.Source == image.Registry, idle: idleOf(job.Source)}
	if archive != nil {
		p.files = append(p.files, archive)
	}
	return r.run(ctx, p)
}

// UnpackImage applies the layers of an image. See image.Options.
func (r *Runner) UnpackImage(ctx context.Context, job image.UnpackJob, layers, tree *os.File) error {
	return r.run(ctx, &unprivileged{what: "layers", about: job.Image, task: task{Unpack: &job}, files: []*os.File{layers, tree}, tree: tree, idle: idleOf(job.Source)})
}

// idleOf is for processes that take apart an image from there.
func idleOf(s image.Source) idleness {
	if s == image.Registry {
		return idleOnNetwork
	}
	return idleAlone
}

func (r *Runner) run(ctx context.Context, p *unprivileged) (err error) {
	uid, err := r.Leases.Acquire(r.Owner)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Leases.Release(uid)) }()
	p.moves = &r.moves
	return p.run(ctx, uid, r.Log)
}

// unprivileged is a process for one task: a user that nothing else of the host has,
// without capability, which may open nothing but the folder that it fills.
type unprivileged struct {
	what    string // its argument
	about   string // the file or image, for messages
	task    task
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
		needs.Folders, needs.Links = []*os.File{p.tree}, p.task.Unpack != nil
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
	if err := gob.NewEncoder(&text).Encode(&p.task); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	needs, env, namespaces := p.confinement()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env, cmd.Dir = []string{command, p.what}, env, "/"
	said, crash := bounded{most: maxOutput}, bounded{most: maxCrash}
	cmd.Stdout, cmd.Stderr = &said, &crash
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.ExtraFiles = p.files
	cmd.WaitDelay = maxSilence
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid},
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true, // the operator's terminal is not its, to type into
	}
	started, handedOver, ended := make(chan error, 1), make(chan struct{}), make(chan error, 1)
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
		if host.Lacks(err, host.Landlock) {
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
			<-handedOver        // it is not reaped before
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
		stdin.Close() // without a task it ends
		go func() {
			if err := p.idle.watch(ctx, cmd.Process.Pid, p.moves); err != nil {
				stop(err)
			}
		}()
		close(handedOver)
		if err = <-ended; victim != nil {
			err = victim
		}
	}
	switch {
	case errors.Is(context.Cause(ctx), errStalled):
		return fmt.Errorf("extract %s: %w; check that the disk of the package, the disk of --state-dir or the registry responds, then retry", p.about, context.Cause(ctx))
	case ctx.Err() != nil:
		return fmt.Errorf("extract %s: %w", p.about, ctx.Err())
	case err != nil:
		return p.whyEnded(err, said.b, crash.b)
	}
	return nil
}

// whyEnded says why the process has failed: err is that of its end, said what it has said of
// the input, and crash what the Go runtime has said of the process.
func (p *unprivileged) whyEnded(err error, said, crash []byte) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return fmt.Errorf("extract %s: %w", p.about, err)
	}
	status := exit.Sys().(syscall.WaitStatus)
	if status.Exited() && status.ExitStatus() == exitFailed {
		return invalid.Decode(p.about, said)
	}
	why, fix := err.Error(), "report it to sandboxd's developers, with the file if you can"
	switch line := fatalLine(crash); {
	case status.Signal() == syscall.SIGKILL && exit.UserTime()+exit.SystemTime() >= maxUnpackCPU: // the kernel's answer (setrlimit(2))
		why, fix = fmt.Sprintf("it used more than %v of CPU time", maxUnpackCPU), invalid.FixLeaveOut
	case status.Signal() == syscall.SIGKILL:
		why, fix = "it was killed: the host is out of memory", "free memory on the host, then retry"
	case outOfMemory(line, exit, p.task.memory()):
		why, fix = fmt.Sprintf("it needs more than the %s of memory that it may use", invalid.Megabytes(int64(p.task.memory()))), invalid.FixLeaveOut
	case line != "":
		why += ": " + line
	}
	return fmt.Errorf("extract %s: the process that reads it ended: %s; %s", p.about, why, fix)
}

// outOfMemory reports whether a process that may have limit bytes of memory has crashed for
// want of more; line says why it crashed. The Go runtime does not always say so: a new thread
// fails, or the garbage collector writes to memory that it did not get. Then the process had
// most of its memory.
func outOfMemory(line string, exit *exec.ExitError, limit uint64) bool {
	if strings.Contains(line, "out of memory") || strings.Contains(line, "cannot allocate memory") {
		return true
	}
	usage, ok := exit.SysUsage().(*syscall.Rusage)
	return ok && uint64(usage.Maxrss)<<10 > limit/2 && // Maxrss is in KiB
		(strings.HasPrefix(line, "runtime/cgo: ") || strings.HasPrefix(line, "SIGSEGV: "))
}

// fatalLine finds in the output of a Go program that has crashed the line that says why: ""
// if there is no output. The program may have chosen the words.
func fatalLine(output []byte) string {
	last := ""
	for line := range strings.Lines(string(output)) {
		line = strings.TrimSpace(line)
		for _, prefix := range []string{"fatal error: ", "panic: ", "runtime: out of memory", "runtime/cgo: ", "SIGSYS: ", "SIGSEGV: "} {
			if strings.HasPrefix(line, prefix) {
				return invalid.Printable(line)
			}
		}
		if line != "" {
			last = line
		}
	}
	return invalid.Printable(last)
}
