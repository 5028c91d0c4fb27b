// Package unpack extracts untrusted zips and images in separate processes. Each process
// runs as a user that nothing else on the host has, without capabilities, and can open
// nothing but the folder that it fills. A [Runner] starts such processes; [Main] is their
// main function.
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

// preferOOMKill makes the kernel kill the process first when the host runs out of memory.
// The process would otherwise inherit the low score of the daemon.
func preferOOMKill(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0)
}

const (
	maxOutput = 64 << 10 // bytes kept of standard output
	maxCrash  = 8 << 10  // bytes kept of standard error, where a crashing Go runtime prints the reason first
	// maxSilence is how long to wait for the end of the output after the process has exited.
	// The process may have sent the descriptor away, in a message that nobody reads.
	maxSilence = 2 * time.Second
)

// bounded keeps the first most bytes that are written to it, and discards the rest.
type bounded struct {
	b    []byte
	most int
}

func (w *bounded) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), w.most-len(w.b))]...)
	return len(p), nil
}

// Runner starts extraction processes. Its methods are safe for concurrent use; each returns
// when its process has exited.
type Runner struct {
	Leases *subid.Leases // gives each process its user
	Owner  string        // instance folder of the daemon
	Log    *logrus.Logger

	moves atomic.Int64 // see idleness.watch
}

// Moved says that the daemon works on what these processes wait for, so that none of them counts as
// stalled. It implements image.Options.Moved.
func (r *Runner) Moved() { r.moves.Add(1) }

// Zip extracts a zip. It implements store.Store.Unzip.
func (r *Runner) Zip(ctx context.Context, job extract.ZipJob, zip, tree *os.File) error {
	return r.run(ctx, &unprivileged{what: "zip", about: job.File, task: task{Zip: &job}, files: []*os.File{zip, tree}, tree: tree, idle: idleAlone})
}

// ReadImage reads an image. Only the process for a registry has a network. ReadImage
// implements image.Options.Read.
func (r *Runner) ReadImage(ctx context.Context, job image.ReadJob, conn, archive, spool *os.File) error {
	p := &unprivileged{what: "image", about: job.Image, task: task{Read: &job}, files: []*os.File{conn}, network: job.Source == image.Registry, idle: idleOf(job.Source)}
	if archive != nil {
		p.files = append(p.files, archive, spool)
	}
	return r.run(ctx, p)
}

// UnpackImage unpacks a layer of an image. It implements image.Options.Unpack.
func (r *Runner) UnpackImage(ctx context.Context, job image.UnpackJob, layer, tree *os.File) error {
	return r.run(ctx, &unprivileged{what: "layer", about: job.Image, task: task{Unpack: &job}, files: []*os.File{layer, tree}, tree: tree, idle: idleOf(job.Source)})
}

// idleOf returns when a process that reads an image from s counts as stalled.
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

// unprivileged describes an extraction process for one task.
type unprivileged struct {
	what    string // name of the step, its argument
	about   string // name of the file or image, for messages
	task    task
	files   []*os.File    // descriptors that it inherits, from firstFD on
	tree    *os.File      // the one of files that is the folder to fill; may be nil
	network bool          // it has the network of the host, else none
	idle    idleness      // when it is killed as stalled
	moves   *atomic.Int64 // see idleness.watch
}

// networkFiles lists the files and folders that a process with network needs to look up
// names and to verify certificates.
var networkFiles = []string{
	"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/protocols", "/etc/mdns.allow",
	"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/var/lib/ca-certificates",
}

// networkEnv lists the variables that a process with network inherits from the operator.
var networkEnv = []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"}

// confinement returns what the process may access, its environment, and its new namespaces.
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
		if strings.HasPrefix(name, "SSL_CERT_") { // paths: make them absolute, its working directory differs
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

// run runs the process as uid, and returns when it has exited.
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
	cmd := p.command(ctx, uid, env)
	output, crash := bounded{most: maxOutput}, bounded{most: maxCrash}
	cmd.Stdout, cmd.Stderr = &output, &crash
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	started, handedOver, ended := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is confined
		err := p.start(cmd, needs, namespaces, log)
		if started <- err; err == nil {
			<-handedOver        // until then nothing reaps the process, so its pid stays valid
			ended <- cmd.Wait() // on this thread: Pdeathsig kills the process when the thread ends
		}
	}()
	if err = <-started; err == nil {
		setup := preferOOMKill(cmd.Process.Pid)
		if setup == nil {
			setup = confine.Check(cmd.Process.Pid) // the filter of FilterThread; the process adds its own
		}
		if setup == nil {
			_, _ = stdin.Write(text.Bytes()) // if the process has exited, Wait has the reason
		}
		stdin.Close() // without a task the process exits
		go func() {
			if err := p.idle.watch(ctx, cmd.Process.Pid, p.moves); err != nil {
				stop(err)
			}
		}()
		close(handedOver)
		if err = <-ended; setup != nil {
			err = setup
		}
	}
	switch {
	case errors.Is(context.Cause(ctx), errStalled):
		return fmt.Errorf("extract %s: %w; check that the disk of the package, the disk of --state-dir or the registry responds, then retry", p.about, context.Cause(ctx))
	case ctx.Err() != nil:
		return fmt.Errorf("extract %s: %w", p.about, ctx.Err())
	case err != nil:
		return p.explain(err, output.b, crash.b)
	}
	return nil
}

// command returns the command of the process, with env as its environment. It is killed when
// ctx ends.
func (p *unprivileged) command(ctx context.Context, uid uint32, env []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env, cmd.Dir = []string{command, p.what}, env, "/"
	cmd.ExtraFiles = p.files
	cmd.WaitDelay = maxSilence
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid},
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true, // so that it cannot push input into the operator's terminal
	}
	return cmd
}

// start confines the calling thread, which must be locked and is good for nothing else
// afterwards, and starts cmd from it, so that the process inherits the confinement.
func (p *unprivileged) start(cmd *exec.Cmd, needs confine.Needs, namespaces int, log *logrus.Logger) error {
	// On its first use of pidfds, Go starts a child to test them. Make it do so now: in the
	// new PID namespace that child would be PID 1, and its exit would end the namespace.
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Release()
	}
	// The process inherits no descriptor that the operator's shell has left open.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // fails before Linux 5.11
	if err := needs.Thread(); host.Lacks(err, host.Landlock) {
		log.WithError(err).Warnf("%s is extracted without it; see 'sandboxd doctor'", p.about)
	} else if err != nil {
		return err
	}
	// The process will be PID 1 of its namespace: when it exits, the kernel kills its children.
	if err := unix.Unshare(namespaces); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	// The filter comes last, because it forbids new namespaces.
	if err := runc.FilterThread(); err != nil {
		return err
	}
	return cmd.Start()
}

// explain returns the error to report for a process that failed. err is the result of its
// Wait, output its standard output and crash its standard error.
func (p *unprivileged) explain(err error, output, crash []byte) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return fmt.Errorf("extract %s: %w", p.about, err)
	}
	status := exit.Sys().(syscall.WaitStatus)
	if status.Exited() && status.ExitStatus() == exitFailed {
		return invalid.Decode(p.about, output)
	}
	why, fix := err.Error(), "report it to sandboxd's developers, with the file if you can"
	switch line := fatalLine(crash); {
	case status.Signal() == syscall.SIGKILL && exit.UserTime()+exit.SystemTime() >= maxUnpackCPU: // RLIMIT_CPU (setrlimit(2))
		why, fix = fmt.Sprintf("it used more than %v of CPU time", maxUnpackCPU), invalid.FixLeaveOut
	case status.Signal() == syscall.SIGKILL:
		why, fix = "it was killed: the host is out of memory", "free memory on the host, then retry"
	case outOfMemory(line, exit, p.task.memory()):
		why, fix = fmt.Sprintf("it needs more memory than its limit of %s", invalid.Megabytes(int64(p.task.memory()))), invalid.FixLeaveOut
	case line != "":
		why += ": " + line
	}
	return fmt.Errorf("extract %s: the process that reads it failed: %s; %s", p.about, why, fix)
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

// fatalLine returns the line with the reason from the output of a crashed Go program, or ""
// if there is no output. The text is untrusted.
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
