package rapid

import (
	"context"
	"errors"
	"time"
)

// endProcesses runs the shutdown sequence of section 4.5, for a reset and for the end of
// the sandbox. When it returns without error, no process of the generation is left.
func (s *Sandbox) endProcesses(reason string) error {
	s.fault, s.exit, s.reason = nil, nil, reasonFailure // LC-49, LC-50
	s.runtime.retire()
	s.hub.SendAtOnce() // TL-17, TL-22
	err := s.thaw()    // LC-82: the window counts from here
	if err == nil && !s.lost {
		err = s.askToLeave(reason)
	}
	err = errors.Join(err, s.stopDomains())
	s.forget()
	return err
}

// askToLeave gives the runtime and then the agents their time (LC-61 to LC-63).
// stopDomains kills what stays.
func (s *Sandbox) askToLeave(reason string) error {
	window, share := s.window()
	if window == 0 {
		return nil // LC-60
	}
	deadline := time.Now().Add(window)
	for _, p := range s.procs {
		if p.agent == nil && !p.gone {
			if err := s.endRuntime(p, share); err != nil {
				return err
			}
		}
	}
	s.flush()
	e := &Event{Type: EventShutdown, Reason: reason, Deadline: deadline}
	for _, a := range s.agents {
		switch {
		case !a.External || a.process == nil || a.process.gone:
		case a.wants(EventShutdown):
			a.give(e) // now, or with its next call (LC-68)
		default:
			if err := s.kill(a.process); err != nil { // LC-62
				return err
			}
		}
	}
	s.timer.Reset(time.Until(deadline))
	s.waitForExits(func() bool { return !s.alive(true) })
	return nil
}

// endRuntime asks the runtime to end, waits for its share of the window, and kills it.
func (s *Sandbox) endRuntime(p *process, share time.Duration) error {
	// SUP-07: if the process has ended that is no failure, and a SIGTERM that could not
	// be sent is followed by a SIGKILL.
	_ = s.sup.Terminate(p.domain, p.name)
	s.timer.Reset(share)
	s.waitForExits(func() bool { return p.gone })
	if p.gone || s.lost {
		return nil
	}
	return s.kill(p)
}

// kill ends the group of one process and sees its exit.
func (s *Sandbox) kill(p *process) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Settings.KillWait)
	defer cancel()
	if err := s.sup.Kill(ctx, p.domain, p.name); err != nil {
		return hostError("kill "+p.name, err)
	}
	s.timer.Reset(exitEventWait)
	s.waitForExits(func() bool { return p.gone }) // stopDomains says if it does not come
	return nil
}

// exitEventWait is how long exits may be on their way after the processes are known
// to be gone (LC-63).
const exitEventWait = 2 * time.Second

// stopDomains kills whatever is left, double-forked daemons too (LC-69). A domain
// that does not end in time makes the sandbox useless (LC-73).
func (s *Sandbox) stopDomains() error {
	if s.lost {
		s.timer.Reset(exitEventWait)
		s.waitForExits(func() bool { return !s.alive(false) })
		return ErrLost
	}
	if !s.started {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Settings.KillWait)
	defer cancel()
	var errs []error
	for _, d := range s.domains() {
		if _, err := s.sup.Stop(ctx, d); err != nil {
			errs = append(errs, hostError("stop domain "+d, err))
		}
	}
	if len(errs) == 0 {
		s.timer.Reset(exitEventWait)
		if !s.waitForExits(func() bool { return !s.alive(false) }) {
			errs = append(errs, errors.New("exits are missing though the domains have stopped"))
		}
	}
	return errors.Join(errs...)
}

// waitForExits serves calls and sees exits until done holds or the timer fires.
func (s *Sandbox) waitForExits(done func() bool) bool {
	lost := s.sup.Lost()
	if s.lost {
		lost = nil
	}
	for !done() {
		select {
		case m := <-s.inbox:
			s.serve(m)
		case e := <-s.exits:
			if s.left(e) && e.p.agent != nil {
				e.p.agent.State = leftState(e.p)
			}
		case <-s.timer.C:
			return false
		case <-lost:
			s.lost = true
			return false
		}
	}
	return true
}

// leftState is LC-67's.
func leftState(p *process) agentState {
	if e := p.handle.Exit(); e.Signal != 0 || e.Code != 0 {
		return agShutdownFailed
	}
	return agExited
}

// alive reports whether there is a process whose exit was not seen. With toldOnly only
// extensions count that get a SHUTDOWN event.
func (s *Sandbox) alive(toldOnly bool) bool {
	for _, p := range s.procs {
		if !p.gone && (!toldOnly || p.agent != nil && p.agent.wants(EventShutdown)) {
			return true
		}
	}
	return false
}

// window is the time of a shutdown and the runtime's share of it (LC-60, LC-64).
func (s *Sandbox) window() (window, share time.Duration) {
	set := &s.cfg.Settings
	for _, a := range s.agents {
		switch {
		case a.ID == "": // never registered
		case a.External:
			return set.ExternalWindow, time.Duration(float64(set.ExternalWindow) * set.RuntimeShare)
		default:
			window, share = set.InternalWindow, set.InternalWindow
		}
	}
	return window, share
}

// forget clears what a reset clears (LC-70) and releases the outputs. What the
// processes wrote last still goes to the log, but not to subscribers, which are gone.
func (s *Sandbox) forget() {
	s.hub.Reset()
	for _, p := range s.procs {
		_ = p.out.Close() // of pipes: there is nothing to do about an error, and nothing is lost
	}
	s.procs = nil
	s.runtime.close()
	s.closeAgents()
	s.exit = nil
}
