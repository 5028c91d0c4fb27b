package main

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation/wire"
)

// A handler does what the daemon asks. One goroutine, that of loop, owns it: it
// alone forks, signals and reaps. So a pid is signalled only while its process is
// unreaped (SUP-21), and Exited never overtakes Started (SUP-06).
type handler struct {
	conn *wire.Conn
	null *os.File // standard input of every process

	listener int // gets the calls of sysinfo; -1 if there is none, or it has its answerer

	pids map[uint32]int // live main processes, by request
	ids  map[int]uint32 // the inverse

	requests chan request
	zombies  chan struct{} // some child has ended
	forked   chan struct{} // there is a child to wait for; capacity 1
}

type request struct {
	message wire.Message
	files   []*os.File
	err     error
}

func newHandler(conn *wire.Conn, null *os.File, listener int) *handler {
	return &handler{
		conn:     conn,
		null:     null,
		listener: listener,
		pids:     make(map[uint32]int),
		ids:      make(map[int]uint32),
		requests: make(chan request),
		zombies:  make(chan struct{}),
		forked:   make(chan struct{}, 1),
	}
}

// loop returns when the socket ends or fails. The process ends then, and with it
// the other goroutines.
func (h *handler) loop() error {
	go h.receive()
	go h.watch()
	for {
		var err error
		select {
		case r := <-h.requests:
			if err = r.err; err == nil {
				err = h.handle(r)
			}
		case <-h.zombies:
			err = h.reap(unix.WNOHANG)
		}
		if err != nil {
			return err
		}
	}
}

func (h *handler) receive() {
	for {
		m, files, err := h.conn.Recv()
		h.requests <- request{m, files, err}
		if err != nil {
			return
		}
	}
}

// watch tells the loop when there is something to reap, and reaps nothing itself.
func (h *handler) watch() {
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT|unix.WALL, nil)
		switch err {
		case nil:
			h.zombies <- struct{}{}
		case unix.ECHILD:
			<-h.forked
		case unix.EINTR:
		default:
			die(exitFailed, os.NewSyscallError("waitid", err))
		}
	}
}

func (h *handler) handle(r request) error {
	switch m := r.message.(type) {
	case wire.Exec:
		return h.exec(m, r.files)
	case wire.Signal:
		if pid, live := h.pids[m.ID]; live {
			// The group exists as long as its leader is unreaped, and this process
			// has the capability to signal it: there is no failure to report.
			_ = unix.Kill(-pid, unix.Signal(m.Signal))
		}
		return nil
	case wire.KillAll:
		return h.killAll(m)
	default:
		return &wire.Error{Op: "receive", Err: unix.EPROTO}
	}
}

// exec starts a process in a session of its own and answers with how that went.
func (h *handler) exec(m wire.Exec, files []*os.File) error {
	fds := []uintptr{h.null.Fd()}
	for _, f := range files {
		defer f.Close()
		fds = append(fds, f.Fd())
	}
	if _, live := h.pids[m.ID]; live {
		return h.conn.Send(wire.Started{ID: m.ID, Errno: int32(unix.EEXIST), Stage: wire.StageExec})
	}
	if h.listener >= 0 { // all processes of a domain have the same ids
		go (&answerer{listener: h.listener}).run(m.UID, m.GID)
		h.listener = -1
	}
	attr := &syscall.ProcAttr{
		Dir:   m.Dir,
		Env:   m.Env,
		Files: fds,
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Credential: &syscall.Credential{Uid: m.UID, Gid: m.GID}, // no groups
		},
	}
	pid, err := syscall.ForkExec(m.Path, m.Argv, attr)
	if err != nil {
		errno, ok := err.(syscall.Errno)
		if !ok {
			errno = unix.EINVAL
		}
		return h.conn.Send(wire.Started{ID: m.ID, Errno: int32(errno), Stage: failedStage(attr, errno)})
	}
	h.pids[m.ID], h.ids[pid] = pid, m.ID
	select {
	case h.forked <- struct{}{}:
	default:
	}
	return h.conn.Send(wire.Started{ID: m.ID, PID: int32(pid)})
}

// failedStage tells a bad working directory from a bad program: one errno of
// ForkExec stands for both. Only the sandbox user can say, and this process is
// another, so a second child enters the directory and then fails in a known way
// that differs from the first failure.
func failedStage(attr *syscall.ProcAttr, errno syscall.Errno) wire.Stage {
	switch errno {
	case unix.ENOENT, unix.EACCES, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG:
	default: // chdir does not fail so
		return wire.StageExec
	}
	probe := "/" // a directory cannot be executed: EACCES
	if errno == unix.EACCES {
		probe = os.DevNull + "/" // nor is a device a directory: ENOTDIR
	}
	if _, err := syscall.ForkExec(probe, []string{probe}, attr); err == errno {
		return wire.StageDir
	}
	return wire.StageExec
}

// killAll ends every other process of the pid namespace. One signal is enough: a
// process that is being killed cannot fork.
func (h *handler) killAll(m wire.KillAll) error {
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return os.NewSyscallError("kill", err)
	}
	if err := h.reap(0); err != nil {
		return err
	}
	return h.conn.Send(wire.Killed{Seq: m.Seq})
}

// reap collects children until none is left to collect: with WNOHANG those that
// have ended, with 0 all. Orphans that nobody asked for are collected in silence
// (SUP-13).
func (h *handler) reap(options int) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, options|unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD, err == nil && pid == 0:
			return nil
		case err != nil:
			return os.NewSyscallError("wait4", err)
		}
		id, main := h.ids[pid]
		if !main {
			continue
		}
		delete(h.ids, pid)
		delete(h.pids, id)
		if err := h.conn.Send(wire.Exited{ID: id, Status: uint32(status)}); err != nil {
			return err
		}
	}
}
