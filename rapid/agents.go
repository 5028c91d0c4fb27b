package rapid

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// agentState is the protocol state of an extension, with the names of section 2.4.
type agentState string

const (
	agStarted        agentState = "Started"
	agRegistered     agentState = "Registered"
	agReady          agentState = "Ready"
	agRunning        agentState = "Running"
	agInitError      agentState = "InitError"
	agExitError      agentState = "ExitError"
	agShutdownFailed agentState = "ShutdownFailed"
	agExited         agentState = "Exited"
	agLaunchError    agentState = "LaunchError"
)

type agentCall int

const (
	agRegister agentCall = iota
	agNext
	agFailInit
	agFailExit
)

var agentTarget = [...]agentState{agRegister: agRegistered, agNext: agReady, agFailInit: agInitError, agFailExit: agExitError}

// agentMoves is the table of section 2.4: the state that a call leads to. A call that it does
// not contain is refused with status 403.
var agentMoves = map[agentState]map[agentCall]agentState{
	agStarted:    {agRegister: agRegistered},
	agRegistered: {agNext: agReady, agFailInit: agInitError, agFailExit: agExitError},
	agReady:      {agFailExit: agExitError},
	agRunning:    {agNext: agReady, agFailExit: agExitError},
	agInitError:  {agFailInit: agInitError},
	agExitError:  {agFailExit: agExitError},

	agShutdownFailed: {},
	agExited:         {},
	agLaunchError:    {},
}

const (
	maxAgents    = 10  // EX-04, EX-15
	maxAgentName = 255 // EX-12; no file has a longer name
)

// agent is the Extensions API's state of one extension: the part that can be saved, its
// parked call, and its process if it is external.
type agent struct {
	AgentState
	waiter  *nextMsg // parked call of event/next; nil if there is none
	process *process // nil for an internal extension
}

// gaveUp reports whether an internal agent has posted an error. It has no process of its own
// that would exit, so the initialization does not wait for it any more (EX-33).
func (a *agent) gaveUp() bool {
	return !a.External && (a.State == agInitError || a.State == agExitError)
}

// move makes the transition of the call c, or returns why it is not allowed.
func (a *agent) move(c agentCall) *Refusal {
	to, ok := agentMoves[a.State][c]
	if !ok {
		who := a.ID
		if c == agRegister {
			who = a.Name
		}
		return &Refusal{Type: InvalidExtensionState, Message: fmt.Sprintf(
			"State transition from %s to %s failed for extension %s. Error: State transition is not allowed", a.State, agentTarget[c], who)}
	}
	a.State = to
	return nil
}

func (a *agent) wants(event string) bool { return slices.Contains(a.Events, event) }

// give delivers e to the agent: now if a call is parked, else with its next call.
func (a *agent) give(e *Event) {
	a.Event, a.Pending = e, true
	if a.waiter != nil && a.waiter.alive() {
		a.pass()
	}
}

// pass answers the parked call with the pending event.
func (a *agent) pass() {
	a.waiter.deliver(a.Event)
	a.waiter, a.Pending, a.State = nil, false, agRunning
}

// busy reports whether the agent has an event that it has not finished.
func (a *agent) busy() bool { return a.Pending || a.State == agRunning }

// Registration is the content of a registration request (EX-07).
type Registration struct {
	Name      string
	Events    []string
	AccountID bool // the extension accepts the feature accountId (EX-09)
}

// Registered is the answer to a registration (EX-08).
type Registered struct {
	ID                                                string
	FunctionName, FunctionVersion, Handler, AccountID string // AccountID only if requested and known
}

type registerMsg struct {
	reg Registration
	call[*Registered]
}

func (m *registerMsg) serve(s *Sandbox) {
	a, err := s.register(m.reg)
	if err != nil {
		m.refuse(err)
		return
	}
	f := &s.cfg.Function
	answer := &Registered{ID: a.ID, FunctionName: f.Name, FunctionVersion: f.Version, Handler: f.Handler}
	if m.reg.AccountID {
		answer.AccountID = f.AccountID
	}
	failpoint.Pass(failpoint.ExtensionRegistered)
	m.answer(answer)
}

// register registers an extension, after the checks of EX-11 to EX-15 in the order of EX-12.
func (s *Sandbox) register(r Registration) (*agent, *Refusal) {
	if r.Name == "" {
		return nil, &Refusal{Type: InvalidExtensionName, Message: "Empty extension name"}
	}
	if len(r.Name) > maxAgentName {
		return nil, &Refusal{Type: InvalidExtensionName, Message: fmt.Sprintf("Extension name has more than %d bytes", maxAgentName)}
	}
	i := slices.IndexFunc(s.agents, func(a *agent) bool { return a.Name == r.Name })
	external := i >= 0 && s.agents[i].External
	for _, e := range r.Events {
		if (e != EventInvoke || !s.traits.invokeEvents) && (e != EventShutdown || !external) { // EX-11
			return nil, &Refusal{Type: InvalidEventType, Message: fmt.Sprintf("Event %q cannot be registered by this extension", e)}
		}
	}
	var a *agent
	switch {
	case external:
		a = s.agents[i]
		if err := a.move(agRegister); err != nil {
			return nil, err
		}
	case s.closedReg || s.State() != Initializing:
		return nil, &Refusal{Type: RegistrationClosed, Message: "Extension registration closed already"}
	case i >= 0:
		return nil, &Refusal{Type: InvalidExtensionState, Message: "Extension with this name already registered"}
	case len(s.agents) >= maxAgents:
		return nil, &Refusal{Type: TooManyExtensions, Message: fmt.Sprintf("Extension limit (%d) reached", maxAgents)}
	default:
		a = &agent{AgentState: AgentState{Name: r.Name, State: agRegistered}}
		s.agents = append(s.agents, a)
	}
	a.ID = uuid.NewString()
	a.Events = slices.Compact(slices.Sorted(slices.Values(r.Events)))
	return a, nil
}

// agentByID returns the agent with that identifier, or the refusal of EX-17.
func (s *Sandbox) agentByID(id string) (*agent, *Refusal) {
	if id == "" {
		return nil, &Refusal{Type: MissingExtensionIdentifier, Message: "Missing Lambda-Extension-Identifier header"}
	}
	if len(id) != 36 || uuid.Validate(id) != nil {
		return nil, &Refusal{Type: InvalidExtensionIdentifier, Message: "Invalid Lambda-Extension-Identifier"}
	}
	for _, a := range s.agents {
		if a.ID != "" && strings.EqualFold(a.ID, id) {
			return a, nil
		}
	}
	return nil, &Refusal{Type: UnknownExtensionIdentifier, Message: "Unknown extension " + id}
}

func (s *Sandbox) agentNext(m *nextMsg) {
	a, err := s.agentByID(m.agentID)
	if err != nil {
		m.refuse(err)
		return
	}
	// A Ready agent may call again if its call was lost with the connection (RT-25).
	again := a.State == agReady && (a.waiter == nil || !a.waiter.alive())
	lost := a.State == agRunning && a.Pending
	if !again && !lost {
		if err := a.move(agNext); err != nil {
			m.refuse(err)
			return
		}
	}
	a.waiter = m
	if a.Pending {
		a.pass()
	}
}

func (s *Sandbox) agentUndelivered(w *nextMsg) {
	a, err := s.agentByID(w.agentID)
	if err != nil {
		return
	}
	if a.waiter == w {
		a.waiter = nil
	}
	if w.event != nil && w.event == a.Event && a.State == agRunning {
		a.Pending = true
	}
}

// AgentFailure is the failure report of an extension.
type AgentFailure struct {
	Init bool   // posted to init/error, else to exit/error
	Type string // Lambda-Extension-Function-Error-Type
}

type failAgentMsg struct {
	agentID string
	failure AgentFailure
	call[struct{}]
}

func (m *failAgentMsg) serve(s *Sandbox) {
	a, err := s.agentByID(m.agentID)
	if err == nil && m.failure.Type == "" {
		err = &Refusal{Type: MissingHeader, Message: "Lambda-Extension-Function-Error-Type not found"}
	}
	c, fatal := agFailExit, errExtensionExit
	if m.failure.Init {
		c, fatal = agFailInit, errExtensionInit
	}
	if err == nil {
		err = a.move(c)
	}
	if err != nil {
		m.refuse(err)
		return
	}
	if a.waiter != nil { // EX-26
		a.waiter.refuse(&Refusal{Type: InvalidExtensionState, Message: fmt.Sprintf(
			"State transition from %s to %s failed for extension %s. Error: Concurrent state modification", agReady, a.State, a.ID)})
		a.waiter = nil
	}
	a.ErrorType = cutType(m.failure.Type)
	if must := s.traits.agentErrors; must != nil && !must.MatchString(a.ErrorType) { // EX-24
		a.ErrorType = fatal
	}
	if st := s.State(); st != Resetting && st != ShuttingDown { // LC-49
		s.note(&Fault{Type: fatal}) // EX-23: recorded; the process's exit ends the phase
	}
	m.answer(struct{}{})
}

// closeAgents removes every agent and refuses its parked call (RT-59, EX-27).
func (s *Sandbox) closeAgents() {
	for _, a := range s.agents {
		if a.waiter != nil {
			a.waiter.refuse(ErrClosed)
		}
	}
	s.agents, s.closedReg = nil, false
}
