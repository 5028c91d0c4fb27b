package rapid

import (
	"context"
	"os"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

// process is a process of the present generation.
type process struct {
	domain, name string
	agent        *agent // nil for the runtime
	handle       Process
	out          output
	gone         bool // its exit was seen
}

type exited struct{ p *process }

// framesFD is the number that the descriptor of LOG-01 has in the runtime: the first
// after stderr.
const framesFD = "3"

// start runs r with descriptors for its output, and arranges for its exit to reach Run
// exactly once. a is nil for the runtime.
func (s *Sandbox) start(ctx context.Context, a *agent, r supervisor.ExecRequest) (*process, error) {
	source, name := telemetry.FromFunction, "runtime"
	if a != nil {
		source, name = telemetry.FromExtension, a.Name
	}
	framed := a == nil && s.traits.framedLog
	out, err := s.openOutput(framed, func(m telemetry.Message) { s.log.Output(source, name, m) })
	if err != nil {
		return nil, err
	}
	r.Stdout, r.Stderr = out.Stdout(), out.Stderr()
	if f := out.Frames(); f != nil {
		r.ExtraFiles = []*os.File{f} // framesFD
	}
	h, err := s.sup.Exec(ctx, r)
	out.Release()
	if err != nil {
		_ = out.Close() // err is what matters, and nothing was written
		return nil, err
	}
	p := &process{domain: r.Domain, name: r.Name, agent: a, handle: h, out: out}
	s.procs = append(s.procs, p)
	go func() {
		<-h.Done()
		s.token.exiting.Add(1) // left takes it back
		select {
		case s.exits <- exited{p}:
		case <-s.dead:
		}
	}()
	return p, nil
}

// exited notes an exit outside a shutdown, and reports whether it belongs to this
// generation (LC-10). Every such exit is a failure (LC-11, EX-28).
func (s *Sandbox) exited(e exited) bool {
	if !s.left(e) {
		return false
	}
	if s.exit == nil || e.p.agent == nil && s.exit.agent != nil && e.p.handle.Exit().OOMKilled {
		s.exit = e.p
	}
	s.reason = reasonFailure
	if e.p.handle.Exit().OOMKilled {
		s.lost = true // docs/decisions/0037: the supervisor is ending the others
	}
	return true
}

// left marks a process of this generation as gone.
func (s *Sandbox) left(e exited) bool {
	s.token.exiting.Add(-1)
	for _, p := range s.procs {
		if p == e.p {
			p.gone = true
			return true
		}
	}
	return false
}

// noteExit makes the exit that was seen first the fatal error, unless the process has
// posted a better one.
func (s *Sandbox) noteExit() {
	if s.exit != nil {
		s.note(exitFault(s.exit))
		s.exit = nil
	}
}

// lostDomains notes that the supervisor has lost the processes (docs/decisions/0037).
func (s *Sandbox) lostDomains() {
	s.lost, s.reason = true, reasonFailure
	if s.exit == nil {
		s.note(&Fault{errRuntimeExit, "Runtime exited with error: signal: killed"}) // INV-14
	}
}

// drain passes on to the log what the processes have written until now.
func (s *Sandbox) drain() {
	for _, p := range s.procs {
		p.out.Drain()
	}
}

// flush does what drain does, and takes what the runtime or a dead process has left without
// a newline for a line.
func (s *Sandbox) flush() {
	for _, p := range s.procs {
		if p.agent == nil || p.gone {
			p.out.Flush()
		} else {
			p.out.Drain()
		}
	}
}

// freeze stops every process until thaw (LC-80).
func (s *Sandbox) freeze() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.token.life), s.cfg.Settings.FreezeTimeout)
	defer cancel()
	s.frozen = true // also when it fails: thaw undoes half a freeze
	s.clock.freeze()
	if err := s.sup.Freeze(ctx); err != nil {
		return hostError("freeze", err)
	}
	return nil
}

func (s *Sandbox) thaw() error {
	if !s.frozen {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.token.life), s.cfg.Settings.FreezeTimeout)
	defer cancel()
	if err := s.sup.Thaw(ctx); err != nil {
		return hostError("thaw", err)
	}
	s.frozen = false
	s.clock.thaw()
	return nil
}

// quotaTime is how long a change of the CPU quota may take: it is one request to the
// supervisor, which writes one file.
const quotaTime = 10 * time.Second

// throttle puts the CPU quota in force, which it must be from the first invocation of a
// generation on (docs/decisions/0036). Without it the function would take the CPU of
// its neighbours: after an error the sandbox must be given up. Only Run may call it.
func (s *Sandbox) throttle(ctx context.Context) error {
	if s.throttled {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, quotaTime)
	defer cancel()
	if err := s.sup.Throttle(ctx, true); err != nil {
		return hostError("put the CPU quota in force", err)
	}
	s.throttled = true
	return nil
}
