package rapid

import (
	"context"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// Restored is what a sandbox gets anew with its restore (LC-93).
type Restored struct {
	Credentials Credentials
	LogStream   string // "" keeps the name
}

// restoreLimit is the time of a restore: the runtime's hooks, and the way to its
// first event (LC-91).
const restoreLimit = 10 * time.Second

// SnapStart tells whether the endpoints of section 4.7 exist.
func (s *Sandbox) SnapStart() bool { return s.cfg.Initialization == SnapStart }

// restore makes a sandbox that was initialized long ago ready for its first
// invocation (LC-91): new credentials, and the hooks of a runtime that waits for them.
func (m *classicMode) restore(ctx context.Context) State {
	s := m.s
	began := time.Now()
	s.timer.Reset(restoreLimit)
	m.snapshot = false
	if err := s.renew(); err != nil {
		s.broken = hostError("renew the credentials", err) // the operator's alone: it may name or quote his files
		return m.restoreFailed(began, &Fault{errRestoreRenewal, "The credentials could not be renewed"})
	}
	f := &s.cfg.Function
	s.log.Platform(&telemetry.RestoreStart{FunctionName: f.Name, FunctionVersion: f.Version,
		InstanceID: s.cfg.LogStream, InstanceMaxMemory: int64(f.MemoryMB) << 20,
		RuntimeVersion: f.Runtime, RuntimeVersionARN: runtimeARN(f)})
	s.runtime.release()

	switch s.wait(ctx, func() bool { return s.runtime.State == rtReady || s.posted != nil }) {
	case cancelled:
		m.abandon(ErrDead)
		return ShuttingDown
	case limitPassed:
		return m.restoreFailed(began, &Fault{errRestoreTimeout, "Restore hooks did not end in time"})
	case failed:
		s.awaitLastPost(s.spoke)
		s.noteExit()
		return m.restoreFailed(began, s.fatal())
	}
	if s.posted != nil {
		return m.restoreFailed(began, &Fault{s.posted.errorType, "the runtime's hooks after the restore have failed"})
	}
	d := s.endRestore(began, "")
	m.restoreTime = &d
	m.current.begin(time.Now(), f.Timeout)
	return Invoking
}

// renew takes what the restore brings.
func (s *Sandbox) renew() error {
	if s.cfg.Restore == nil {
		return nil
	}
	r, err := s.cfg.Restore()
	if err != nil {
		return err
	}
	s.cfg.Credentials = r.Credentials
	if r.LogStream != "" {
		s.cfg.LogStream = r.LogStream
	}
	return nil
}

// restoreFailed ends a restore that cannot succeed (LC-92), and the sandbox with it.
func (m *classicMode) restoreFailed(began time.Time, f *Fault) State {
	s := m.s
	s.note(f)
	f = s.fatal()
	s.endRestore(began, f.Type)
	m.current.begin(time.Now(), s.cfg.Function.Timeout)
	m.failUnstarted(f)
	return s.fail(nil, reasonFailure)
}

// endRestore writes the records of the end of a restore, and returns how long it took.
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

// release lets a runtime go on that waits for the restore.
func (r *runtimeParty) release() {
	if r.State != rtRestoreReady {
		return // RT-54: it asked for its first event at once
	}
	r.State = rtRestoring
	r.restore.answer(struct{}{})
	r.restore = nil
}

type restoreNextMsg struct{ call[struct{}] }

func (m *restoreNextMsg) serve(s *Sandbox) {
	r := &s.runtime
	lost := r.State == rtRestoreReady && r.restore.ctx.Err() != nil // its connection is gone: it may ask again
	if err := r.move(callRestoreNext); err != nil && !lost {
		m.refuse(err)
		return
	}
	s.closedReg = true // EX-14
	r.restore = m
}

// ErrUnknownToken says that nobody in the sandbox has that token.
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
