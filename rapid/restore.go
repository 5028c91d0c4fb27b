package rapid

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// Restored is what changes in a sandbox when it is restored (LC-93).
type Restored struct {
	Credentials Credentials
	LogStream   string // "" keeps the name
}

// restoreLimit limits a restore: new credentials, the runtime's hooks, and the runtime's call
// for its first event (LC-91).
const restoreLimit = 10 * time.Second

// SnapStart reports whether the sandbox has the endpoints of section 4.7.
func (s *Sandbox) SnapStart() bool { return s.cfg.Initialization == SnapStart }

// restore prepares an initialized sandbox for its first invocation (LC-91): it renews the
// credentials, and lets a runtime that waits in restore/next run its hooks.
func (m *classicMode) restore(ctx context.Context) State {
	s := m.s
	began := time.Now()
	s.timer.Reset(restoreLimit)
	m.snapshot = false
	w, err := m.renew(ctx)
	if err != nil {
		s.broken = hostError("renew the credentials", err) // only for the operator: it may quote files of the host
		return m.restoreFailed(began, &Fault{errRestoreRenewal, "The credentials could not be renewed"})
	}
	if w != reached {
		return m.restoreEnded(w, began)
	}
	f := &s.cfg.Function
	s.log.Platform(&telemetry.RestoreStart{FunctionName: f.Name, FunctionVersion: f.Version,
		InstanceID: s.cfg.LogStream, InstanceMaxMemory: int64(f.MemoryMB) << 20,
		RuntimeVersion: f.Runtime, RuntimeVersionARN: runtimeARN(f)})
	s.runtime.release()
	if w := s.wait(ctx, func() bool { return s.runtime.State == rtReady || s.posted != nil }); w != reached {
		return m.restoreEnded(w, began)
	}
	if s.posted != nil {
		return m.restoreFailed(began, &Fault{s.posted.errorType, "the runtime's hooks after the restore have failed"})
	}
	d := s.endRestore(began, "")
	m.restoreTime = &d
	m.current.begin(time.Now(), f.Timeout)
	return Invoking
}

// renew calls Config.Restore and applies its result. It serves calls while it waits. It
// returns an error if Restore fails or takes too long. If the wait ended for another reason,
// the wakening says why.
func (m *classicMode) renew(ctx context.Context) (wakening, error) {
	s := m.s
	if s.cfg.Restore == nil {
		return reached, nil
	}
	limited, cancel := context.WithTimeout(ctx, restoreLimit)
	defer cancel()
	go func() {
		r, err := s.cfg.Restore(limited)
		s.send(&renewedMsg{mode: m, restored: r, err: err})
	}()
	w := s.wait(ctx, func() bool { return m.renewed != nil })
	switch {
	case ctx.Err() != nil: // an error of Restore may be a consequence
		return cancelled, nil
	case w == limitPassed:
		return w, fmt.Errorf("no answer within %v", restoreLimit)
	case w != reached:
		return w, nil
	case m.renewed.err != nil:
		return reached, m.renewed.err
	}
	r := &m.renewed.restored
	s.cfg.Credentials = r.Credentials
	if r.LogStream != "" {
		s.cfg.LogStream = r.LogStream
	}
	return reached, nil
}

// renewedMsg delivers the result of Config.Restore. It needs no reply.
type renewedMsg struct {
	mode     *classicMode
	restored Restored
	err      error
}

func (msg *renewedMsg) serve(*Sandbox)     { msg.mode.renewed = msg }
func (msg *renewedMsg) generation() uint64 { return noGeneration }
func (msg *renewedMsg) refuse(error)       {}

// restoreEnded ends a restore whose wait ended with w before it was complete, and returns
// the next state.
func (m *classicMode) restoreEnded(w wakening, began time.Time) State {
	switch w {
	case cancelled:
		m.abandon(ErrDead)
		return ShuttingDown
	case limitPassed:
		return m.restoreFailed(began, &Fault{errRestoreTimeout, "Restore hooks did not end in time"})
	}
	m.s.awaitLastPost(m.s.exitExplained)
	m.s.noteExit()
	return m.restoreFailed(began, m.s.fatal())
}

// restoreFailed ends a restore that has failed (LC-92), and the sandbox with it.
func (m *classicMode) restoreFailed(began time.Time, f *Fault) State {
	s := m.s
	s.note(f)
	f = s.fatal()
	s.endRestore(began, f.Type)
	m.current.begin(time.Now(), s.cfg.Function.Timeout)
	m.failUnstarted(f)
	return s.fail(nil, reasonFailure)
}

// endRestore writes the records for the end of a restore, and returns its duration.
func (s *Sandbox) endRestore(began time.Time, errorType string) time.Duration {
	d, status := time.Since(began), telemetry.StatusOf(errorType)
	if errorType == errRestoreTimeout {
		status = telemetry.Timeout
	}
	s.flush()
	s.log.Platform(&telemetry.RestoreRuntimeDone{Status: status, ErrorType: errorType})
	s.log.Platform(&telemetry.RestoreReport{Status: status, ErrorType: errorType, Metrics: telemetry.InitMetrics{Duration: telemetry.Millis(d)}})
	return d
}

// release answers the parked call of restore/next.
func (r *runtimeParty) release() {
	if r.State != rtRestoreReady {
		return // RT-54: the runtime did not call restore/next
	}
	r.State = rtRestoring
	if r.restore != nil && r.restore.ctx.Err() == nil {
		r.restore.answer(struct{}{})
	} else { // its connection is gone: the runtime calls again
		r.RestoreOwed = true
	}
	r.restore = nil
}

type restoreNextMsg struct{ call[struct{}] }

func (m *restoreNextMsg) serve(s *Sandbox) {
	r := &s.runtime
	if r.State == rtRestoring && r.RestoreOwed {
		r.RestoreOwed = false
		m.answer(struct{}{})
		return
	}
	lost := r.State == rtRestoreReady && (r.restore == nil || r.restore.ctx.Err() != nil) // its connection is gone: the runtime may call again
	if err := r.move(callRestoreNext); err != nil && !lost {
		m.refuse(err)
		return
	}
	s.closedReg = true // EX-14
	r.restore = m
}

// ErrUnknownToken reports that the token is not that of the sandbox.
var ErrUnknownToken = errors.New("unknown token")

type credentialsMsg struct {
	token string
	call[Credentials]
}

func (m *credentialsMsg) serve(s *Sandbox) {
	if subtle.ConstantTimeCompare([]byte(m.token), []byte(s.cfg.Token)) != 1 {
		m.refuse(ErrUnknownToken)
		return
	}
	m.answer(s.cfg.Credentials)
}
