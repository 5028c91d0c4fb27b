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

// domainTime limits the creation of a domain, which takes some milliseconds: no limit of the
// function is in force yet.
const domainTime = time.Minute

// startDomains creates the domains, and turns the CPU quota off. It runs before the time
// limit of the initialization starts. Later initializations use the same domains (LC-71).
func (s *Sandbox) startDomains(ctx context.Context) error {
	for _, d := range s.domains() {
		if !s.started {
			if err := s.sup.Configure(d, supervisor.DomainConfig{}); err != nil {
				return err
			}
		}
		limited, cancel := context.WithTimeout(ctx, domainTime)
		err := s.sup.Start(limited, d)
		cancel()
		if err != nil {
			return err
		}
	}
	s.started = true
	limited, cancel := context.WithTimeout(ctx, quotaTime)
	defer cancel()
	return s.sup.Throttle(limited, false)
}

// domains returns the domains of the sandbox. Without external extensions there is no
// extension domain.
func (s *Sandbox) domains() []string {
	if len(s.cfg.Function.Extensions) == 0 || s.cfg.Function.ExtensionsDisabled {
		return []string{isolation.RuntimeDomain}
	}
	return []string{isolation.RuntimeDomain, isolation.ExtensionDomain}
}

// beginInit begins a new generation (LC-10), writes INIT_START, and returns the time limit of
// the initialization.
func (s *Sandbox) beginInit() (limit time.Duration) {
	f := &s.cfg.Function
	s.gen.Add(1)
	s.fault, s.exit, s.throttled = nil, nil, false
	s.runtime = newRuntimeParty()
	s.hub.Open()
	retry := s.init.failed && s.init.phase == telemetry.InitPhase
	s.init = initialization{began: time.Now()}
	s.init.phase, limit = s.mode.beginInit()
	s.log.Platform(&telemetry.InitStart{InitializationType: s.cfg.Initialization.String(), Phase: s.init.phase,
		RuntimeVersion: f.Runtime, RuntimeVersionARN: runtimeARN(f), FunctionName: f.Name, FunctionVersion: f.Version,
		InstanceID: s.cfg.LogStream, InstanceMaxMemory: int64(f.MemoryMB) << 20, FunctionARN: s.recordARN(), Retry: retry})
	return limit
}

// initialization is the state of the current or latest initialization.
type initialization struct {
	phase       telemetry.Phase
	began       time.Time
	runtimeDone bool // initRuntimeDone has been written
	failed      bool // it has ended, and not with success
}

// runtimeARN returns the ARN of the runtime's version, in the form that Lambda uses.
func runtimeARN(f *Function) string {
	return fmt.Sprintf("arn:aws:lambda:%s::runtime:%s", f.Region, f.Runtime)
}

// launchExtensions starts every external extension, in listing order (LC-01).
func (s *Sandbox) launchExtensions(ctx context.Context) *Fault {
	if s.cfg.Function.ExtensionsDisabled {
		return nil
	}
	for i, name := range s.cfg.Function.Extensions {
		a := &agent{AgentState: AgentState{Name: name, External: true, State: agStarted}}
		s.agents = append(s.agents, a)
		var err error
		if i >= maxAgents {
			a.ErrorType = "TooManyExtensions"
			err = fmt.Errorf("more than %d extensions", maxAgents)
		} else {
			a.process, err = s.start(ctx, a, supervisor.ExecRequest{Domain: isolation.ExtensionDomain,
				Name: fmt.Sprintf("extension-%s-%d", name, s.gen.Load()), Path: extensionsDir + name, Dir: "/",
				Env: extensionEnv(&s.cfg)})
		}
		if err != nil {
			a.State = agLaunchError
			if a.ErrorType == "" {
				a.ErrorType = launchErrorType(err)
			}
			return &Fault{errExtensionLaunch, launchErrorText(extensionsDir+name, err)}
		}
	}
	return nil
}

// launchRuntime starts the function's bootstrap.
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
	return !slices.ContainsFunc(s.agents, func(a *agent) bool { return a.State == agStarted })
}

// allReady reports whether the runtime and every registered agent that has not given up
// have asked for their first event. It writes initRuntimeDone when the runtime has.
func (s *Sandbox) allReady() bool {
	if s.runtime.State != rtReady && s.runtime.State != rtRestoreReady {
		return false
	}
	s.reportInitRuntimeDone("", telemetry.Success)
	return !slices.ContainsFunc(s.agents, func(a *agent) bool { return a.State != agReady && !a.gaveUp() })
}

func (s *Sandbox) reportInitRuntimeDone(errorType string, status telemetry.Status) {
	if s.init.runtimeDone {
		return
	}
	s.init.runtimeDone = true
	s.drain() // the runtime's output comes before the record
	s.log.Platform(&telemetry.InitRuntimeDone{InitializationType: s.cfg.Initialization.String(), Phase: s.init.phase, Status: status, ErrorType: errorType})
}

// endInit writes the records for the end of an initialization, and returns its duration.
func (s *Sandbox) endInit(errorType string, status telemetry.Status) time.Duration {
	d := time.Since(s.init.began)
	s.init.failed = status != telemetry.Success
	s.hub.Close() // TL-14
	s.flush()
	if status == telemetry.Success || s.fault == nil {
		s.reportInitRuntimeDone(errorType, status)
	} else {
		s.reportInitRuntimeDone(s.fault.Type, status)
	}
	for _, a := range s.agents {
		events := a.Events
		if events == nil {
			events = []string{}
		}
		s.log.Platform(&telemetry.Extension{Name: a.Name, State: string(a.State), Events: events, ErrorType: s.agentErrorType(a)})
	}
	s.log.Platform(&telemetry.InitReport{InitializationType: s.cfg.Initialization.String(), Phase: s.init.phase,
		Metrics: telemetry.InitMetrics{Duration: telemetry.Millis(d)}, Status: status, ErrorType: errorType})
	return d
}

// agentErrorType returns the error type of an agent at the end of an initialization: the one
// that it has posted, or that of its exit; "" if it has not failed.
func (s *Sandbox) agentErrorType(a *agent) string {
	if a.ErrorType == "" && a.process != nil && a.process.gone && !s.sup.OutOfMemory() {
		return errExtensionCrash
	}
	return a.ErrorType
}

// initEnded ends an initialization whose wait ended with w before it was complete, and
// returns the next state.
func (s *Sandbox) initEnded(w wakening) State {
	switch w {
	case cancelled:
		s.mode.abandon(ErrDead)
		return ShuttingDown
	case limitPassed:
		if s.init.phase == telemetry.InvokePhase { // TL-47
			s.endInit(errRuntimeUnknown, telemetry.Error)
		} else {
			s.endInit("", telemetry.Timeout)
		}
		s.mode.initTimedOut()
		return s.fail(nil, reasonTimeout)
	}
	s.awaitLastPost(s.exitExplained) // RT-51
	s.noteExit()
	return s.initFailed(s.fatal())
}

// initFailed ends an initialization that cannot succeed (LC-08).
func (s *Sandbox) initFailed(f *Fault) State {
	s.note(f)
	f = s.fatal()
	s.endInit(f.Type, telemetry.Error)
	s.mode.initFailed(f)
	return s.fail(nil, reasonFailure)
}

// exitExplained reports whether the process that exited has posted the reason.
func (s *Sandbox) exitExplained() bool {
	p := s.exit
	switch {
	case p == nil:
		return true
	case p.agent != nil:
		return p.agent.State == agInitError || p.agent.State == agExitError
	}
	return s.posted != nil && s.posted.gen == s.gen.Load()
}

// awaitLastPost serves calls for a grace period after an exit, or until done reports true:
// what a process has posted just before its exit may still be in transit (RT-51).
func (s *Sandbox) awaitLastPost(done func() bool) {
	s.timer.Reset(s.cfg.Settings.ExitGrace)
	for !s.lost {
		if s.wait(s.token.life, done) != failed {
			return
		}
	}
}

// ErrLost is the error of Run after a domain was lost, because the sandbox ran out of memory
// or was killed from outside. The error of Run wraps it and says which.
var ErrLost = errors.New("the processes of the sandbox are gone")

func (s *Sandbox) lostError() error {
	if s.sup.OutOfMemory() {
		return fmt.Errorf("%w: out of memory, the limit is %d MB", ErrLost, s.cfg.Function.MemoryMB)
	}
	return fmt.Errorf("%w: killed from outside", ErrLost)
}
