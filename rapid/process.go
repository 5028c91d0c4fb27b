package rapid

import (
	"context"
	"os"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

// process is a process of the current generation.
type process struct {
	domain, name string
	agent        *agent // nil for the runtime
	handle       Process
	out          output
	gone         bool // Run has received its exit
}

type exited struct{ p *process }

// framesFD is the number of the descriptor of LOG-01 in the runtime, the first after stderr.
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
	r.Stdout, r.Stderr = out.Lines(), out.Lines() // docs/decisions/0043
	if f := out.Frames(); f != nil {
		r.ExtraFiles = []*os.File{f} // framesFD
	}
	h, err := s.sup.Exec(ctx, r)
	out.Release()
	if err != nil {
		_ = out.Close() // nothing was written
		return nil, err
	}
	p := &process{domain: r.Domain, name: r.Name, agent: a, handle: h, out: out}
	s.procs = append(s.procs, p)
	go func() {
		<-h.Done()
		s.token.exiting.Add(1) // markGone decrements it
		select {
		case s.exits <- exited{p}:
		case <-s.dead:
		}
	}()
	return p, nil
}

// exited records an exit outside a shutdown, and reports whether the process belongs to the
// current generation (LC-10). Every such exit is a failure (LC-11, EX-28).
func (s *Sandbox) exited(e exited) bool {
	if !s.markGone(e) {
		return false
	}
	oom := s.sup.OutOfMemory()
	if s.exit == nil || e.p.agent == nil && s.exit.agent != nil && oom {
		s.exit = e.p
	}
	s.reason = reasonFailure
	if oom {
		s.lost = true // docs/decisions/0037: the supervisor kills the other processes
	}
	s.hint(e.p)
	return true
}

// markGone marks the process of e as gone, and reports whether it belongs to the current
// generation.
func (s *Sandbox) markGone(e exited) bool {
	s.token.exiting.Add(-1)
	for _, p := range s.procs {
		if p == e.p {
			p.gone = true
			return true
		}
	}
	return false
}

// noteExit records the first exit as the fatal error, unless the process has posted an error.
func (s *Sandbox) noteExit() {
	if s.exit != nil {
		s.note(s.exitFault(s.exit))
		s.exit = nil
	}
}

// lostDomains records that the supervisor has lost the domains (docs/decisions/0037).
func (s *Sandbox) lostDomains() {
	s.lost, s.reason = true, reasonFailure
	switch {
	case s.exit != nil:
	case s.sup.OutOfMemory():
		s.note(s.memoryFault(nil))
	default:
		s.note(&Fault{errRuntimeExit, "Runtime exited with error: signal: killed"})
	}
}

// drain copies what the processes have written so far to the log.
func (s *Sandbox) drain() {
	for _, p := range s.procs {
		p.out.Drain()
	}
}

// flush does the same as drain. It also ends the last line of the runtime and of dead
// processes, even without a newline.
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
	s.frozen = true // even if it fails: thaw undoes a partial freeze
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

// quotaTime limits a change of the CPU quota, which is one request to the supervisor and one
// write to a file.
const quotaTime = 10 * time.Second

// throttle turns the CPU quota on, which must happen before the first invocation of a
// generation (docs/decisions/0036). Without the quota the function could use the CPU of
// other sandboxes, so after an error the sandbox must end. Only Run may call it.
func (s *Sandbox) throttle(ctx context.Context) error {
	if s.throttled {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, quotaTime)
	defer cancel()
	if err := s.sup.Throttle(ctx, true); err != nil {
		return hostError("turn the CPU quota on", err)
	}
	s.throttled = true
	return nil
}
