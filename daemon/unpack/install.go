package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation/wire"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// InstallJob is the care for a program in a sandbox that installs packages: its end, its
// network and its output. The program is hostile once it has run something of a package.
type InstallJob struct {
	About string // what is installed, for messages
	ID    uint32 // of the program's wire.Exec, which has been sent
	Bytes int64  // most bytes of Output
}

// InstallFiles are the open files of an InstallJob. They stay the caller's.
type InstallFiles struct {
	Control  *os.File // socket of the init handler
	Listener *os.File // socket on which the sandbox reaches the proxy
	Stdout   *os.File // reading ends of the pipes that the program writes to
	Stderr   *os.File
	Output   *os.File // gets what the program writes to its standard output
	Terminal *os.File // gets what it writes to its standard error
}

// idleInstall is for compilers: their output, which is all that the process handles, may
// come at the end.
var idleInstall = idleness{2 * time.Hour, time.Millisecond}

// Install cares for the program until it has ended.
func (r *Runner) Install(ctx context.Context, job InstallJob, f InstallFiles) error {
	return r.run(ctx, &unprivileged{
		what: "install", about: job.About, task: task{Install: &job}, network: true, idle: idleInstall,
		files: []*os.File{f.Control, f.Listener, f.Stdout, f.Stderr, f.Output, f.Terminal},
	})
}

// openInstallFiles takes the files over in the process.
func openInstallFiles() (f InstallFiles) {
	for i, file := range []**os.File{&f.Control, &f.Listener, &f.Stdout, &f.Stderr, &f.Output, &f.Terminal} {
		*file = os.NewFile(uintptr(firstFD+i), "")
	}
	return f
}

// run implements the job in the process.
func (j *InstallJob) run(f InstallFiles) error {
	control, err := wire.Take(f.Control)
	if err != nil {
		return err
	}
	listener, err := net.FileListener(f.Listener)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: newProxy(), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	written, logged := make(chan error, 1), make(chan struct{})
	go func() {
		n, err := io.Copy(f.Output, io.LimitReader(f.Stdout, j.Bytes+1))
		if n > j.Bytes || errors.Is(err, unix.EFBIG) {
			err = fmt.Errorf("the layer is larger than %s", invalid.Megabytes(j.Bytes))
		}
		written <- err
		_, _ = io.Copy(io.Discard, f.Stdout) // so that the program ends
	}()
	go func() {
		defer close(logged)
		_, _ = io.Copy(harmless{f.Terminal}, f.Stderr)
	}()
	status, err := j.wait(control)
	if err != nil {
		return err
	}
	// Whoever is left of the program may keep the pipes open.
	timeout := time.After(maxSilence)
	select {
	case <-logged:
	case <-timeout:
	}
	if status != 0 {
		return fmt.Errorf("%s has failed (%s); the lines above say why", j.About, endOf(status))
	}
	return <-written // it has ended well, and nobody is left
}

// wait waits for the end of the program.
func (j *InstallJob) wait(control *wire.Conn) (unix.WaitStatus, error) {
	for {
		m, _, err := control.Recv()
		if err != nil {
			return 0, fmt.Errorf("the sandbox has ended: %w", err)
		}
		switch m := m.(type) {
		case wire.Started:
			if m.ID == j.ID && m.Errno != 0 {
				return 0, fmt.Errorf("start the program that installs: %w", unix.Errno(m.Errno))
			}
		case wire.Exited:
			if m.ID == j.ID {
				return unix.WaitStatus(m.Status), nil
			}
		}
	}
}

// endOf says how a process ended.
func endOf(status unix.WaitStatus) string {
	if status.Signaled() {
		return "signal " + unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// harmless writes text without what a terminal could take for a command.
type harmless struct{ w io.Writer }

func (h harmless) Write(p []byte) (int, error) {
	clean := make([]byte, 0, len(p))
	for _, b := range p {
		switch {
		case b == '\n' || b == '\t' || b >= ' ' && b < 0x7f:
			clean = append(clean, b)
		case b == '\r':
		case b < ' ' || b == 0x7f:
			clean = append(clean, '?')
		case b >= 0xc0: // the first byte of a character that ASCII does not have
			clean = append(clean, '?')
		}
	}
	if _, err := h.w.Write(clean); err != nil {
		return 0, err
	}
	return len(p), nil
}
