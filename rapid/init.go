package rapid

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

const (
	extensionsDir = "/opt/extensions/"
	taskRoot      = "/var/task"
)

// startDomains makes the domains, before the clock of the first initialization
// starts; later ones find them (LC-71).
func (s *Sandbox) startDomains(ctx context.Context) error {
	for _, d := range s.domains() {
		if !s.started {
			if err := s.sup.Configure(d, supervisor.DomainConfig{}); err != nil {
				return err
			}
		}
		if err := s.sup.Start(ctx, d); err != nil {
			return err
		}
	}
	s.started = true
	return s.sup.Throttle(false)
}

// domains are those of the sandbox: no extension domain without external extensions.
func (s *Sandbox) domains() []string {
	if len(s.cfg.Function.Extensions) == 0 || s.cfg.Function.ExtensionsDisabled {
		return []string{isolation.RuntimeDomain}
	}
	return []string{isolation.RuntimeDomain, isolation.ExtensionDomain}
}

// beginInit opens a generation (LC-10) and writes INIT_START.
func (s *Sandbox) beginInit() {
	f := &s.cfg.Function
	s.gen.Add(1)
	s.fault, s.exit, s.throttled, s.initStatus = nil, nil, false, false
	s.runtime = runtimeParty{state: rtStarted}
	s.hub.Open()
	s.initBegin, s.initPhase = time.Now(), telemetry.InitPhase
	if s.inline() {
		s.initPhase, s.inlineLog = telemetry.InvokePhase, true
		s.initTime = nil
		s.runtime.id = s.current.inv.ID // an id is current already: 403, not 400
		s.beginLog()
	}
	s.log.Platform(&telemetry.InitStart{InitializationType: s.cfg.Initialization.String(), Phase: s.initPhase,
		RuntimeVersion: f.Runtime, RuntimeVersionARN: runtimeARN(f), FunctionName: f.Name, FunctionVersion: f.Version,
		InstanceID: s.cfg.LogStream, InstanceMaxMemory: int64(f.MemoryMB) << 20, FunctionARN: s.managedARN()})
}

// runtimeARN names the runtime's version as Lambda's ARNs do.
func runtimeARN(f *Function) string {
	return fmt.Sprintf("arn:aws:lambda:%s::runtime:%s", f.Region, f.Runtime)
}

// launchExtensions executes every external extension, in listing order (LC-01).
func (s *Sandbox) launchExtensions(ctx context.Context) *Fault {
	if s.cfg.Function.ExtensionsDisabled {
		return nil
	}
	for i, name := range s.cfg.Function.Extensions {
		a := &agent{name: name, external: true, state: agStarted}
		s.agents = append(s.agents, a)
		var err error
		if i >= maxAgents {
			a.errorType = "TooManyExtensions"
			err = fmt.Errorf("more than %d extensions", maxAgents)
		} else {
			a.process, err = s.start(ctx, a, supervisor.ExecRequest{Domain: isolation.ExtensionDomain,
				Name: fmt.Sprintf("extension-%s-%d", name, s.gen.Load()), Path: extensionsDir + name, Dir: "/",
				Env: extensionEnv(&s.cfg)})
		}
		if err != nil {
			a.state = agLaunchError
			if a.errorType == "" {
				a.errorType = launchErrorType(err)
			}
			return &Fault{errExtensionLaunch, fmt.Sprintf("extension %s: %v", name, err)}
		}
	}
	return nil
}

// launchRuntime executes the function's bootstrap.
func (s *Sandbox) launchRuntime(ctx context.Context) *Fault {
	b := &s.cfg.Function.Bootstrap
	if b.Path == "" {
		return &Fault{errInvalidEntrypoint, "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap /var/runtime/bootstrap]"}
	}
	_, err := s.start(ctx, nil, supervisor.ExecRequest{Domain: isolation.RuntimeDomain,
		Name: fmt.Sprintf("runtime-%d", s.gen.Load()), Path: b.Path, Args: b.Args, Dir: b.Dir, Env: runtimeEnv(&s.cfg)})
	if err == nil {
		return nil
	}
	if f := bootstrapFault(b.Path, err); f != nil {
		if i := s.cfg.Function.Image; i != nil {
			s.log.Platform(&telemetry.ImageError{Message: f.Message, Entrypoint: i.Entrypoint, Cmd: i.Cmd, WorkingDir: i.WorkingDir})
		}
		return f
	}
	return &Fault{errSandboxFailure, err.Error()}
}

func (s *Sandbox) allRegistered() bool {
	return !slices.ContainsFunc(s.agents, func(a *agent) bool { return a.state == agStarted })
}

// allReady tells whether the runtime and every registered agent have asked for
// their first event, those apart that have given up. It writes initRuntimeDone when the runtime is there.
func (s *Sandbox) allReady() bool {
	if s.runtime.state != rtReady && s.runtime.state != rtRestoreReady {
		return false
	}
	s.reportInitRuntimeDone("", telemetry.Success)
	return !slices.ContainsFunc(s.agents, func(a *agent) bool { return a.state != agReady && !a.gaveUp() })
}

func (s *Sandbox) reportInitRuntimeDone(errorType string, status telemetry.Status) {
	if s.initStatus {
		return
	}
	s.initStatus = true
	s.drain() // what the runtime has said is before it
	s.log.Platform(&telemetry.InitRuntimeDone{InitializationType: s.cfg.Initialization.String(), Phase: s.initPhase, Status: status, ErrorType: errorType})
}

// initDone ends a successful initialization (LC-01, step 9).
func (s *Sandbox) initDone() {
	d := s.endInit("", telemetry.Success)
	s.posted = nil
	switch {
	case s.cfg.Initialization == SnapStart:
		s.snapshot = true // the initialization is not the invocation's
	case s.initPhase == telemetry.InitPhase:
		s.initTime = &d
	}
}

// endInit writes the records of the end of an initialization, and returns how long
// it took.
func (s *Sandbox) endInit(errorType string, status telemetry.Status) time.Duration {
	d := time.Since(s.initBegin)
	s.hub.Close() // TL-14
	s.flush()
	if status == telemetry.Success || s.fault == nil {
		s.reportInitRuntimeDone(errorType, status)
	} else {
		s.reportInitRuntimeDone(s.fault.Type, status)
	}
	for _, a := range s.agents {
		events := a.events
		if events == nil {
			events = []string{}
		}
		s.log.Platform(&telemetry.Extension{Name: a.name, State: string(a.state), Events: events, ErrorType: a.errorType})
	}
	s.log.Platform(&telemetry.InitReport{InitializationType: s.cfg.Initialization.String(), Phase: s.initPhase,
		Metrics: telemetry.InitMetrics{Duration: telemetry.Millis(d)}, Status: status, ErrorType: errorType})
	return d
}

// initEnded says what follows when an initialization was waited for in vain.
func (s *Sandbox) initEnded(w wakening) State {
	switch w {
	case cancelled:
		s.abandon(ErrDead)
		return ShuttingDown
	case limitPassed:
		s.endInit("", telemetry.Timeout) // TL-47
		s.timeAllOut()
		limit := s.cfg.Function.Timeout
		if !s.inline() && s.current != nil && !s.renewable() { // LC-09: it has no second try to wait for
			limit = s.cfg.Settings.InitTimeout
			s.current.begin(time.Now(), limit)
		}
		if s.inline() {
			s.reportStart()
			s.timedOut(limit)
		}
		return s.fail(nil, reasonTimeout)
	}
	s.awaitLastPost(s.spoke) // RT-51
	s.noteExit()
	return s.initFailed(s.fatal())
}

// spoke tells whether the process that ended had posted why.
func (s *Sandbox) spoke() bool {
	p := s.exit
	switch {
	case p == nil:
		return true
	case p.agent != nil:
		return p.agent.state == agInitError || p.agent.state == agExitError
	}
	return s.posted != nil && s.posted.gen == s.gen.Load()
}

// initFailed ends an initialization that cannot succeed (LC-08). Inside an invocation
// it is the invocation that has failed (LC-26); one that only waits for the sandbox
// gets another try of its own, if there is still a sandbox that may try (LC-09).
func (s *Sandbox) initFailed(f *Fault) State {
	s.note(f)
	f = s.fatal()
	s.endInit(f.Type, telemetry.Error)
	s.failAll(f)
	if s.current != nil && (s.lost || !s.renewable()) && !s.inline() {
		s.current.begin(time.Now(), s.cfg.Function.Timeout)
	}
	if !s.inline() {
		return s.fail(nil, reasonFailure)
	}
	return s.failUnstarted(f)
}

// failUnstarted answers and reports an invocation that never got to the runtime.
func (s *Sandbox) failUnstarted(f *Fault) State {
	s.reportStart()
	s.reportFault()
	if p := s.posted; p != nil { // LC-27
		s.answer(&Result{Payload: p.body, ContentType: p.contentType(), FunctionError: true, ErrorType: p.errorType})
		s.posted = nil
	} else {
		s.answer(faultResult(s.current.inv.ID, f))
	}
	s.reportEnd(f.Type, telemetry.StatusOf(f.Type))
	return s.fail(nil, reasonFailure)
}

// awaitLastPost serves calls for a short grace after an exit, until done holds: what a
// process has posted just before its end may be on its way (RT-51).
func (s *Sandbox) awaitLastPost(done func() bool) {
	s.timer.Reset(s.cfg.Settings.ExitGrace)
	for !s.lost {
		if s.wait(s.token.life, done) != failed {
			return
		}
	}
}

// ErrLost is what Run returns after a domain was lost: out of memory, or killed from
// outside.
var ErrLost = errors.New("the processes of the sandbox are gone: out of memory, or killed from outside")
