package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/isolation/wire"
)

// A token serializes requests, as a mutex does. Unlike a mutex, take can be canceled with a
// context. Use newToken.
type token chan struct{}

func newToken() token { return make(token, 1) }

func (t token) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t token) tryTake() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

func (t token) release() { <-t }

// A domain is the state of one domain. Sandbox.mu guards all fields but token and name.
type domain struct {
	name  string
	token token

	config *DomainConfig // nil until configured
	conn   *wire.Conn    // nil until started
	gone   chan struct{} // created with conn; closed when the connection has ended

	lastID  uint32              // of a process
	live    map[uint32]*Process // by id: started, or waiting for the init handler's answer
	named   map[string]*Process // newest process of each name; an exited one stays until the next KillAll
	lastSeq uint32              // of a KillAll
	kills   map[uint32]*killAll // by sequence number: sent, and not answered
	ended   uint32              // lastID of the latest answered KillAll
}

// killAll is a pending KillAll request. When the answer arrives, no process with an id up
// to lastID may be alive.
type killAll struct {
	lastID uint32
	done   chan struct{}
}

func newDomain(name string) *domain {
	return &domain{
		name:  name,
		token: newToken(),
		live:  make(map[uint32]*Process),
		named: make(map[string]*Process),
		kills: make(map[uint32]*killAll),
	}
}

// isLive reports whether the name belongs to a process that has not exited.
func (d *domain) isLive(name string) bool {
	p := d.named[name]
	return p != nil && !p.isDone()
}

// receive handles the messages of the init handler until the connection ends.
func (s *Sandbox) receive(d *domain, conn *wire.Conn) {
	defer s.receivers.Done()
	for {
		m, _, err := conn.Recv() // this end accepts no files
		if err == nil {
			err = s.handle(d, conn, m)
		}
		if err != nil {
			s.end(d, conn, err)
			return
		}
	}
}

// handle handles m. It returns an error if the init handler may not send m now.
func (s *Sandbox) handle(d *domain, conn *wire.Conn, m wire.Message) error {
	switch m := m.(type) {
	case wire.Started:
		return s.started(d, conn, m)
	case wire.Exited:
		return s.exited(d, m)
	case wire.Killed:
		return s.killed(d, m)
	default:
		return fmt.Errorf("unexpected message %T", m)
	}
}

func (s *Sandbox) killed(d *domain, m wire.Killed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := d.kills[m.Seq]
	if k == nil {
		return fmt.Errorf("answer to request %d, which was not sent", m.Seq)
	}
	for id := range d.live {
		if id <= k.lastID {
			return fmt.Errorf("all processes are reported dead, but process %d has not exited", id)
		}
	}
	delete(d.kills, m.Seq)
	maps.DeleteFunc(d.named, func(_ string, p *Process) bool { return p.id <= d.ended })
	d.ended = max(d.ended, k.lastID)
	close(k.done)
	return nil
}

func (s *Sandbox) started(d *domain, conn *wire.Conn, m wire.Started) error {
	s.mu.Lock()
	p := d.live[m.ID]
	if p == nil || p.isAnswered() {
		s.mu.Unlock()
		return fmt.Errorf("start of process %d, which was not requested", m.ID)
	}
	if m.Errno != 0 {
		s.failStart(d, p, &ExecError{Errno: syscall.Errno(m.Errno), BadDir: m.Stage == wire.StageDir})
		s.mu.Unlock()
		return nil
	}
	close(p.answered)
	p.earlier = nil
	wanted := p.wanted
	s.mu.Unlock()
	if wanted != 0 {
		return conn.Send(wire.Signal{ID: p.id, Signal: int32(wanted)})
	}
	return nil
}

// failStart removes the registration of a process that did not start because of err. The
// caller holds s.mu.
func (s *Sandbox) failStart(d *domain, p *Process, err error) {
	delete(d.live, p.id)
	if d.named[p.name] = p.earlier; p.earlier == nil {
		delete(d.named, p.name)
	}
	p.startErr = err
	close(p.answered)
	close(p.done)
}

func (s *Sandbox) exited(d *domain, m wire.Exited) error {
	exit := exitOf(syscall.WaitStatus(m.Status))
	// The kernel counts an out-of-memory kill before it kills.
	if oom := s.checkOOM(); oom && exit.Signal == syscall.SIGKILL {
		exit.OOMKilled = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := d.live[m.ID]
	if p == nil || !p.isAnswered() {
		return fmt.Errorf("exit of process %d, which is not running", m.ID)
	}
	s.finish(d, p, exit)
	return nil
}

// finish records the exit of a started process. The caller holds s.mu.
func (s *Sandbox) finish(d *domain, p *Process, exit Exit) {
	delete(d.live, p.id)
	p.exit = exit
	close(p.done)
	if !p.abandoned { // else Exec has reported that it did not start
		s.feed.publish(Event{Time: time.Now(), Domain: d.name, Name: p.name, Exit: exit})
	}
}

// end handles the end of a control connection. PID 1 has exited, or is no longer trusted:
// end kills every process of the sandbox, and records an exit for each of the domain.
func (s *Sandbox) end(d *domain, conn *wire.Conn, cause error) {
	killErr := s.kill()
	_ = conn.Close()
	exit := Exit{Signal: syscall.SIGKILL, OOMKilled: s.checkOOM()}

	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range d.live {
		if p.isAnswered() {
			s.finish(d, p, exit)
		} else {
			s.failStart(d, p, errLost)
		}
	}
	close(d.gone)
	if !s.closing {
		s.lose(errors.Join(fmt.Errorf("domain %s: %w", d.name, cause), killErr))
	}
}

// lose marks the sandbox as unusable because of cause. The caller holds s.mu.
func (s *Sandbox) lose(cause error) {
	if s.cause == nil {
		s.cause = cause
		close(s.lost)
	}
}

// checkOOM reports whether the kernel has killed a process of the sandbox for lack of
// memory.
func (s *Sandbox) checkOOM() bool {
	usage, err := s.box.Usage()
	if err != nil {
		usage.OOMKills = 0 // unknown: rely on earlier results
	}
	return s.noteOOM(usage.OOMKills)
}

// killTime limits a kill that has no context of a caller.
const killTime = 10 * time.Second

// kill sends SIGKILL to every process of the sandbox, even if the contexts of callers have
// ended.
func (s *Sandbox) kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	return s.box.Kill(ctx)
}

// noteOOM records the number of out-of-memory kills and reports whether there were any. At
// the first it kills the whole sandbox, because not every kernel does so by itself
// (docs/decisions/0037).
func (s *Sandbox) noteOOM(kills uint64) bool {
	s.mu.Lock()
	first := kills > 0 && !s.oom
	s.oom = s.oom || first
	oom := s.oom
	s.mu.Unlock()
	if first {
		if err := s.kill(); err != nil {
			s.mu.Lock()
			s.lose(fmt.Errorf("the sandbox is out of memory and could not be killed: %w", err))
			s.mu.Unlock()
		}
	}
	return oom
}
