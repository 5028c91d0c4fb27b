package rapid

import (
	"context"
	"errors"
	"time"
)

// endProcesses runs the shutdown sequence of section 4.5, for a reset and for the end of the
// sandbox. If it returns nil, no process of the generation is left.
func (s *Sandbox) endProcesses(reason string) error {
	s.fault, s.exit, s.reason = nil, nil, reasonFailure // LC-49, LC-50
	s.runtime.retire()
	s.hub.SendAtOnce() // TL-17, TL-22
	err := s.thaw()    // LC-82: the window starts here
	if err == nil && !s.lost {
		err = s.requestExits(reason)
	}
	err = errors.Join(err, s.stopDomains())
	s.clear()
	return err
}

// requestExits asks first the runtime and then the agents to exit, and waits for them
// within the shutdown window (LC-61 to LC-63). stopDomains kills the rest.
func (s *Sandbox) requestExits(reason string) error {
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

// endRuntime asks the runtime to exit, waits for its share of the window, and kills it.
func (s *Sandbox) endRuntime(p *process, share time.Duration) error {
	// Ignore the error: if the process has exited there is none (SUP-07), and if SIGTERM
	// could not be sent, SIGKILL follows.
	_ = s.sup.Terminate(p.domain, p.name)
	s.timer.Reset(share)
	s.waitForExits(func() bool { return p.gone })
	if p.gone || s.lost {
		return nil
	}
	return s.kill(p)
}

// kill kills the group of one process and waits for its exit.
func (s *Sandbox) kill(p *process) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Settings.KillWait)
	defer cancel()
	if err := s.sup.Kill(ctx, p.domain, p.name); err != nil {
		return hostError("kill "+p.name, err)
	}
	s.timer.Reset(exitEventWait)
	s.waitForExits(func() bool { return p.gone }) // if it does not come, stopDomains returns an error
	return nil
}

// exitEventWait is how long to wait for the exits of processes that are known to be gone
// (LC-63).
const exitEventWait = 2 * time.Second

// stopDomains kills all remaining processes, including double-forked daemons (LC-69). If a
// domain does not stop in time, the sandbox cannot be used again (LC-73).
func (s *Sandbox) stopDomains() error {
	if s.lost {
		s.timer.Reset(exitEventWait)
		s.waitForExits(func() bool { return !s.alive(false) })
		return s.lostError()
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
			errs = append(errs, errors.New("the domains have stopped, but the exit of a process was not reported"))
		}
	}
	return errors.Join(errs...)
}

// waitForExits serves calls and receives exits until done reports true, and returns true. It
// returns false if the timer fires or the domains are lost before.
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
			if s.markGone(e) && e.p.agent != nil {
				e.p.agent.State = exitState(e.p)
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

// exitState returns the state of an agent whose process has exited in a shutdown (LC-67).
func exitState(p *process) agentState {
	if e := p.handle.Exit(); e.Signal != 0 || e.Code != 0 {
		return agShutdownFailed
	}
	return agExited
}

// alive reports whether there is a process whose exit has not been received. With
// notifiedOnly it considers only extensions that get a SHUTDOWN event.
func (s *Sandbox) alive(notifiedOnly bool) bool {
	for _, p := range s.procs {
		if !p.gone && (!notifiedOnly || p.agent != nil && p.agent.wants(EventShutdown)) {
			return true
		}
	}
	return false
}

// window returns the time limit of a shutdown and the runtime's share of it (LC-60, LC-64).
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

// clear clears the state of the generation (LC-70) and releases its outputs. The last output
// of the processes still goes to the log, but not to subscribers, which are gone.
func (s *Sandbox) clear() {
	s.hub.Reset()
	for _, p := range s.procs {
		_ = p.out.Close() // closes pipes; an error loses nothing
	}
	s.procs = nil
	s.runtime.close()
	s.closeAgents()
	s.exit = nil
}
