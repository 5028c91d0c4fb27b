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

// agentMoves is the table of section 2.4. What is not here is a 403.
var agentMoves = map[agentState]map[agentCall]agentState{
	agStarted:    {agRegister: agRegistered},
	agRegistered: {agNext: agReady, agFailInit: agInitError, agFailExit: agExitError},
	agReady:      {agFailExit: agExitError},
	agRunning:    {agNext: agReady, agFailExit: agExitError},
	agInitError:  {agFailInit: agInitError},
	agExitError:  {agFailExit: agExitError},
}

const (
	maxAgents    = 10  // EX-04, EX-15
	maxAgentName = 255 // EX-12; a file has no longer one
)

// agent is one extension. An external one has a process of ours.
type agent struct {
	name      string
	id        string // identifier that its calls carry (EX-08)
	external  bool
	state     agentState
	events    []string // sorted
	errorType string
	waiter    *nextMsg // its parked call
	event     *Event   // what it was given last, or is to be given (pending)
	pending   bool     // event has not reached it (RT-25, LC-68)
	process   *process
}

// gaveUp tells whether an internal agent has posted an error. It has no process whose
// end would follow: the post is all, and nobody waits for it any more (EX-33).
func (a *agent) gaveUp() bool {
	return !a.external && (a.state == agInitError || a.state == agExitError)
}

func (a *agent) move(c agentCall) *Refusal {
	to, ok := agentMoves[a.state][c]
	if !ok {
		who := a.id
		if c == agRegister {
			who = a.name
		}
		return &Refusal{Type: InvalidExtensionState, Message: fmt.Sprintf(
			"State transition from %s to %s failed for extension %s. Error: State transition is not allowed", a.state, agentTarget[c], who)}
	}
	a.state = to
	return nil
}

func (a *agent) wants(event string) bool { return slices.Contains(a.events, event) }

// give hands e to the agent now if it waits, else with its next call.
func (a *agent) give(e *Event) {
	a.event, a.pending = e, true
	if a.waiter != nil && a.waiter.alive() {
		a.pass()
	}
}

// pass answers the parked call with the pending event.
func (a *agent) pass() {
	a.waiter.deliver(a.event)
	a.waiter, a.pending, a.state = nil, false, agRunning
}

// busy tells whether the agent has an event that it has not finished.
func (a *agent) busy() bool { return a.pending || a.state == agRunning }

// Registration is what an extension registers with (EX-07).
type Registration struct {
	Name      string
	Events    []string
	AccountID bool // it accepts the feature accountId (EX-09)
}

// Registered is the answer to a registration (EX-08).
type Registered struct {
	ID                                                string
	FunctionName, FunctionVersion, Handler, AccountID string // AccountID only if asked for and known
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
	answer := &Registered{ID: a.id, FunctionName: f.Name, FunctionVersion: f.Version, Handler: f.Handler}
	if m.reg.AccountID {
		answer.AccountID = f.AccountID
	}
	failpoint.Pass(failpoint.ExtensionRegistered)
	m.answer(answer)
}

// register does the checks of EX-11 to EX-15 in the order of EX-12.
func (s *Sandbox) register(r Registration) (*agent, *Refusal) {
	if r.Name == "" {
		return nil, &Refusal{Type: InvalidExtensionName, Message: "Empty extension name"}
	}
	if len(r.Name) > maxAgentName {
		return nil, &Refusal{Type: InvalidExtensionName, Message: fmt.Sprintf("Extension name has more than %d bytes", maxAgentName)}
	}
	i := slices.IndexFunc(s.agents, func(a *agent) bool { return a.name == r.Name })
	external := i >= 0 && s.agents[i].external
	for _, e := range r.Events {
		if (e != EventInvoke || s.Managed()) && (e != EventShutdown || !external) { // EX-11
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
		a = &agent{name: r.Name, state: agRegistered}
		s.agents = append(s.agents, a)
	}
	a.id = uuid.NewString()
	a.events = slices.Compact(slices.Sorted(slices.Values(r.Events)))
	return a, nil
}

// agentByID does the checks of EX-17.
func (s *Sandbox) agentByID(id string) (*agent, *Refusal) {
	if id == "" {
		return nil, &Refusal{Type: MissingExtensionIdentifier, Message: "Missing Lambda-Extension-Identifier header"}
	}
	if len(id) != 36 || uuid.Validate(id) != nil {
		return nil, &Refusal{Type: InvalidExtensionIdentifier, Message: "Invalid Lambda-Extension-Identifier"}
	}
	for _, a := range s.agents {
		if a.id != "" && strings.EqualFold(a.id, id) {
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
	// A Ready agent whose call was lost with its connection calls again (RT-25).
	again := a.state == agReady && (a.waiter == nil || !a.waiter.alive())
	lost := a.state == agRunning && a.pending
	if !again && !lost {
		if err := a.move(agNext); err != nil {
			m.refuse(err)
			return
		}
	}
	a.waiter = m
	if a.pending {
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
	if w.event != nil && w.event == a.event && a.state == agRunning {
		a.pending = true
	}
}

// AgentFailure is an agent's report about itself.
type AgentFailure struct {
	Init bool   // init/error, else exit/error
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
			"State transition from %s to %s failed for extension %s. Error: Concurrent state modification", agReady, a.state, a.id)})
		a.waiter = nil
	}
	a.errorType = cutType(m.failure.Type)
	if s.Managed() && !managedAgentType.MatchString(a.errorType) { // EX-24
		a.errorType = fatal
	}
	if st := s.State(); st != Resetting && st != ShuttingDown { // LC-49
		s.note(&Fault{Type: fatal}) // EX-23: recorded; the process's exit ends the phase
	}
	m.answer(struct{}{})
}

// closeAgents forgets every agent and ends its parked call (RT-59, EX-27).
func (s *Sandbox) closeAgents() {
	for _, a := range s.agents {
		if a.waiter != nil {
			a.waiter.refuse(ErrClosed)
		}
	}
	s.agents, s.closedReg = nil, false
}
