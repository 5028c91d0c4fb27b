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

// A turn serialises requests. Unlike a mutex it can be waited for with a context.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
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

func (t turn) tryTake() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

func (t turn) leave() { <-t }

// A domain is what the supervisor knows of one domain. All but turn and name is
// guarded by Sandbox.mu.
type domain struct {
	name string
	turn turn

	config *DomainConfig // nil until configured
	conn   *wire.Conn    // nil until started
	gone   chan struct{} // made with conn; closed when the connection has ended

	lastID  uint32
	live    map[uint32]*Process // started, or about to
	named   map[string]*Process // the newest of each name, ended ones too until the KillAll after their end
	lastSeq uint32              // of KillAll
	kills   map[uint32]*killAll // asked for and not answered
	ended   uint32              // lastID of the last that was answered
}

// killAll waits for the answer to a KillAll. Of the processes up to lastID none may
// be alive then.
type killAll struct {
	lastID uint32
	done   chan struct{}
}

func newDomain(name string) *domain {
	return &domain{
		name:  name,
		turn:  newTurn(),
		live:  make(map[uint32]*Process),
		named: make(map[string]*Process),
		kills: make(map[uint32]*killAll),
	}
}

// isLive says whether the name belongs to a process that has not ended.
func (d *domain) isLive(name string) bool {
	p := d.named[name]
	return p != nil && !p.isDone()
}

// receive does what the init handler says until the connection ends.
func (s *Sandbox) receive(d *domain, conn *wire.Conn) {
	defer s.receivers.Done()
	for {
		m, _, err := conn.Recv() // the daemon's end takes no files
		if err == nil {
			err = s.handle(d, conn, m)
		}
		if err != nil {
			s.end(d, conn, err)
			return
		}
	}
}

// handle returns an error if m is nothing that an init handler may say now.
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
		return fmt.Errorf("answer to request %d, which was not made", m.Seq)
	}
	for id := range d.live {
		if id <= k.lastID {
			return fmt.Errorf("all processes are said to be dead, but process %d has not ended", id)
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
		return fmt.Errorf("start of process %d, which was not asked for", m.ID)
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

// failStart takes back the registration of a process that did not start. The caller
// holds s.mu.
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
		return fmt.Errorf("end of process %d, which does not run", m.ID)
	}
	s.finish(d, p, exit)
	return nil
}

// finish records the exit of a started process. The caller holds s.mu.
func (s *Sandbox) finish(d *domain, p *Process, exit Exit) {
	delete(d.live, p.id)
	p.exit = exit
	close(p.done)
	if !p.abandoned { // nobody was told that it started
		s.feed.publish(Event{Time: time.Now(), Domain: d.name, Name: p.name, Exit: exit})
	}
}

// end is the end of a control connection. PID 1 is gone, or must not be believed any
// more: no process of the sandbox may live on, and each gets its exit.
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

// lose marks the sandbox as unusable. The caller holds s.mu.
func (s *Sandbox) lose(cause error) {
	if s.cause == nil {
		s.cause = cause
		close(s.lost)
	}
}

// checkOOM looks for out-of-memory kills and says whether there has been one.
func (s *Sandbox) checkOOM() bool {
	usage, err := s.box.Usage()
	if err != nil {
		usage.OOMKills = 0 // unknown: what was seen before counts
	}
	return s.noteOOM(usage.OOMKills)
}

// killTime bounds a kill that nobody's context bounds.
const killTime = 10 * time.Second

// kill sends SIGKILL to every process of the sandbox, whatever has ended meanwhile.
func (s *Sandbox) kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	return s.box.Kill(ctx)
}

// noteOOM ends the sandbox when the first out-of-memory kill shows: where the kernel
// does not kill all of it together, the supervisor does (docs/decisions/0037).
func (s *Sandbox) noteOOM(kills uint64) bool {
	s.mu.Lock()
	first := kills > 0 && !s.oom
	s.oom = s.oom || first
	oom := s.oom
	s.mu.Unlock()
	if first {
		if err := s.kill(); err != nil {
			s.mu.Lock()
			s.lose(fmt.Errorf("out of memory, and not killed: %w", err))
			s.mu.Unlock()
		}
	}
	return oom
}
