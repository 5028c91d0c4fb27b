package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// Exec starts a process and returns its handle when the program runs (SUP-04). If the
// program cannot be started, the error wraps an *ExecError. If ctx ends first, the process
// is killed as soon as it starts, and its name stays in use until then. If the name is in
// use, the domain is not started, or the sandbox is frozen, the error is InvalidState.
func (s *Sandbox) Exec(ctx context.Context, req ExecRequest) (*Process, error) {
	d, fail, err := s.process("exec", req.Domain, req.Name)
	if err != nil {
		return nil, err
	}
	if req.Name == "" || req.Stdout == nil || req.Stderr == nil {
		return nil, fail(Failure, errors.New("a process needs a name, Stdout and Stderr"))
	}
	if req.Dir == "" {
		req.Dir = "/"
	}
	if err := d.token.take(ctx); err != nil {
		return nil, fail(Failure, err)
	}
	defer d.token.release()

	files := append([]*os.File{req.Stdout, req.Stderr}, req.ExtraFiles...)
	if err := s.givePipes(ctx, files); err != nil {
		return nil, fail(Failure, err)
	}
	p, conn, m, err := s.register(d, req)
	if err != nil {
		return nil, fail(InvalidState, err)
	}
	if err := conn.Send(m, files...); err != nil {
		return nil, fail(Failure, s.unregister(d, p, conn, err))
	}
	select {
	case <-p.answered:
	case <-ctx.Done():
		if s.abandon(p) {
			return nil, fail(Failure, fmt.Errorf("wait for the start: %w", ctx.Err()))
		}
	}
	if p.startErr == nil {
		return p, nil
	}
	var execErr *ExecError
	if errors.As(p.startErr, &execErr) {
		execErr.Path, execErr.Dir = req.Path, req.Dir
	}
	return nil, fail(Failure, p.startErr)
}

// givePipes makes the sandbox user the owner of the pipes among files.
func (s *Sandbox) givePipes(ctx context.Context, files []*os.File) error {
	var pipes []*os.File
	for i, f := range files {
		if slices.Contains(files[:i], f) { // Stdout and Stderr may be one
			continue
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if info.Mode()&os.ModeNamedPipe != 0 {
			pipes = append(pipes, f)
		}
	}
	if len(pipes) == 0 {
		return nil
	}
	return s.box.GivePipes(ctx, pipes...)
}

// register creates the handle, before there is a process (docs/decisions/0034), and the
// message that requests the process.
func (s *Sandbox) register(d *domain, req ExecRequest) (*Process, *wire.Conn, wire.Exec, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, nil, wire.Exec{}, err
	}
	if d.conn == nil {
		return nil, nil, wire.Exec{}, errors.New("the domain is not started")
	}
	if d.isLive(req.Name) {
		return nil, nil, wire.Exec{}, errors.New("a process with this name is running")
	}
	d.lastID++
	p := newProcess(req.Name, d.lastID)
	p.earlier = d.named[req.Name]
	d.live[p.id], d.named[req.Name] = p, p
	return p, d.conn, wire.Exec{
		ID:   p.id,
		Path: req.Path,
		Argv: append([]string{req.Path}, req.Args...),
		Env:  req.Env,
		Dir:  req.Dir,
		UID:  d.config.UID,
		GID:  d.config.GID,
	}, nil
}

// unregister removes a process whose request could not be sent because of err, and returns
// err.
func (s *Sandbox) unregister(d *domain, p *Process, conn *wire.Conn, err error) error {
	if errors.Is(err, wire.ErrFull) {
		_ = conn.Close() // the init handler hangs: end the domain
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !p.isAnswered() { // else the connection has ended meanwhile
		s.failStart(d, p, err)
	}
	return err
}

// abandon marks p, whose start has not been answered yet, to be killed when it starts. It
// returns false if the start has been answered.
func (s *Sandbox) abandon(p *Process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.isAnswered() {
		return false
	}
	p.abandoned, p.wanted = true, syscall.SIGKILL
	return true
}

// Terminate sends SIGTERM to the process group and returns at once (SUP-07). If the process
// has exited, Terminate does nothing and succeeds. A frozen process gets the signal when it
// is thawed.
func (s *Sandbox) Terminate(domain, name string) error {
	d, fail, err := s.process("terminate", domain, name)
	if err != nil {
		return err
	}
	p, err := s.find(d, name)
	if err != nil {
		return fail(NoSuchEntity, err)
	}
	if err := s.signal(d, p, syscall.SIGTERM); err != nil {
		return fail(Failure, err)
	}
	return nil
}

// Kill sends SIGKILL to the process group and waits until the process itself is reaped
// (SUP-08). It fails if ctx ends first, and sends no signal if ctx has ended before. If the
// process has exited, Kill does nothing and succeeds. Kill thaws a frozen sandbox.
func (s *Sandbox) Kill(ctx context.Context, domain, name string) error {
	d, fail, err := s.process("kill", domain, name)
	if err != nil {
		return err
	}
	p, err := s.find(d, name)
	if err != nil {
		return fail(NoSuchEntity, err)
	}
	if p.isDone() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fail(Failure, err)
	}
	if err := s.signal(d, p, syscall.SIGKILL); err != nil {
		return fail(Failure, err)
	}
	if err := s.thaw(ctx, fail); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fail(Failure, fmt.Errorf("wait for the exit: %w", ctx.Err()))
	}
}

// find returns the newest process with that name.
func (s *Sandbox) find(d *domain, name string) (*Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := d.named[name]; p != nil {
		return p, nil
	}
	return nil, errors.New("no such process")
}

// signal sends sig to the group of p. If p is about to start, signal arranges for sig to be
// sent afterwards. If p has exited, signal does nothing.
func (s *Sandbox) signal(d *domain, p *Process, sig syscall.Signal) error {
	s.mu.Lock()
	conn := d.conn
	if !p.isAnswered() {
		if p.wanted != syscall.SIGKILL {
			p.wanted = sig
		}
		s.mu.Unlock()
		return nil
	}
	ended := p.isDone()
	s.mu.Unlock()
	if ended {
		return nil
	}
	err := conn.Send(wire.Signal{ID: p.id, Signal: int32(sig)})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, os.ErrClosed):
		return nil // the domain has ended, which ends p
	case errors.Is(err, wire.ErrFull):
		_ = conn.Close() // the init handler hangs: end the domain
	}
	return err
}

// Stop kills every process of a domain, including those that Exec did not start (SUP-09,
// SUP-13), waits until all are reaped, and returns the sandbox's usage. The domain remains:
// Exec works again. Processes that had exited before the previous Stop are forgotten. Stop
// thaws a frozen sandbox. If ctx ends first, the processes die later, or with Close.
func (s *Sandbox) Stop(ctx context.Context, domain string) (isolation.Usage, error) {
	d, fail, err := s.domain("stop", domain)
	if err != nil {
		return isolation.Usage{}, err
	}
	if err := d.token.take(ctx); err != nil {
		return isolation.Usage{}, fail(Failure, err)
	}
	defer d.token.release()
	if err := s.thaw(ctx, fail); err != nil {
		return isolation.Usage{}, err
	}
	seq, killed, err := s.registerKill(d)
	if err != nil {
		return isolation.Usage{}, fail(InvalidState, err)
	}
	if err := d.conn.Send(wire.KillAll{Seq: seq}); err != nil {
		_ = d.conn.Close() // whatever failed, the domain can no longer be emptied
		return isolation.Usage{}, fail(Failure, err)
	}
	select {
	case <-killed:
	case <-d.gone:
		return isolation.Usage{}, fail(Failure, errLost)
	case <-ctx.Done():
		return isolation.Usage{}, fail(Failure, fmt.Errorf("wait for the exit of all processes: %w", ctx.Err()))
	}
	return s.Usage()
}

// registerKill registers a KillAll, so that its answer can be received.
func (s *Sandbox) registerKill(d *domain) (seq uint32, killed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return 0, nil, err
	}
	if d.conn == nil {
		return 0, nil, errors.New("the domain is not started")
	}
	d.lastSeq++
	k := &killAll{lastID: d.lastID, done: make(chan struct{})}
	d.kills[d.lastSeq] = k
	return d.lastSeq, k.done, nil
}

// process is like domain, for a request about the process with that name.
func (s *Sandbox) process(op, domain, name string) (*domain, failer, error) {
	d, fail, err := s.domain(op, domain)
	if err != nil {
		return nil, nil, err
	}
	return d, func(kind ErrorKind, cause error) error {
		e := fail(kind, cause).(*Error)
		e.Process = name
		return e
	}, nil
}
