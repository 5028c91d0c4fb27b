package rapid

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// Parties is the protocol state of the runtime and the extensions of one generation, as the
// APIs see it. It is plain data and shares no memory that the sandbox changes: it can be
// encoded with encoding/json or encoding/gob, stored, and given to another sandbox with
// [Sandbox.Adopt]. It does not contain waiting calls: their callers call again.
type Parties struct {
	Generation         uint64 // of the processes (LC-10)
	RegistrationClosed bool   // no more extensions can register (EX-14)
	Runtime            RuntimeState
	Agents             []AgentState // launched ones first, then in order of registration
}

// RuntimeState is the protocol state of the runtime.
type RuntimeState struct {
	State       runtimeState // a state of section 1.8
	RequestID   string       // id of the current invocation, which RT-28 compares; "" if there is none
	Event       *Event       // current event; if there is none, nil or the last one
	RestoreOwed bool         // the sandbox is restored, and the next call of restore/next must return at once: the first was lost
}

// AgentState is the protocol state of an extension.
type AgentState struct {
	Name      string
	ID        string     // identifier in its calls (EX-08); "" before it has registered
	External  bool       // it has a process of its own
	State     agentState // a state of section 2.4
	Events    []string   // types of events that it has registered for, sorted
	ErrorType string     // error type of its failure; "" if it has not failed
	Event     *Event     // current event, or with Pending the next; if there is none, nil or the last one
	Pending   bool       // Event has not been delivered (RT-25, LC-68)
}

// Parties returns the current protocol state. The error is that of ctx, or ErrDead.
func (s *Sandbox) Parties(ctx context.Context) (Parties, error) {
	return ask(ctx, s, &partiesMsg{newCall[Parties](ctx, noGeneration)})
}

type partiesMsg struct{ call[Parties] }

func (m *partiesMsg) serve(s *Sandbox) {
	// Omit events that are over: their payloads may be large, and belong to the invoker again.
	p := Parties{Generation: s.gen.Load(), RegistrationClosed: s.closedReg, Runtime: s.runtime.RuntimeState}
	if p.Runtime.State == rtReady {
		p.Runtime.Event = nil
	}
	for _, a := range s.agents {
		st := a.AgentState
		st.Events = slices.Clone(st.Events)
		if !a.busy() {
			st.Event = nil
		}
		p.Agents = append(p.Agents, st)
	}
	m.answer(p)
}

// Adopt replaces the protocol state with p, which comes from another sandbox of the same
// function. The sandbox must be Initializing, and its processes must be copies of those of
// the other sandbox. From then on their calls continue where the originals were, with the
// same identifiers, and the initialization is over when all parties in p are ready. Adopt
// ends the current generation, unless it has the same number as the other: waiting calls of
// its clients return ErrClosed.
//
// If p does not fit this sandbox, Adopt returns an error and changes nothing. The error may
// also be that of ctx, or ErrDead. The Events of p must not be changed afterwards.
func (s *Sandbox) Adopt(ctx context.Context, p Parties) error {
	_, err := ask(ctx, s, &adoptMsg{p, newCall[struct{}](ctx, noGeneration)})
	return err
}

type adoptMsg struct {
	parties Parties
	call[struct{}]
}

func (m *adoptMsg) serve(s *Sandbox) {
	if err := s.adopt(&m.parties); err != nil {
		m.refuse(fmt.Errorf("adopt the state of other processes: %w", err))
		return
	}
	m.answer(struct{}{})
}

func (s *Sandbox) adopt(p *Parties) error {
	if st := s.State(); st != Initializing {
		return fmt.Errorf("the sandbox is %v instead of %v", st, Initializing)
	}
	processes := map[string]*process{} // of the external agents, by name
	for _, a := range s.agents {
		if a.External {
			processes[a.Name] = a.process
		}
	}
	if err := errors.Join(p.Runtime.check(), checkAgents(p.Agents, processes)); err != nil {
		return err
	}
	s.runtime.close()
	s.closeAgents()
	s.gen.Store(p.Generation)
	s.closedReg, s.runtime.RuntimeState = p.RegistrationClosed, p.Runtime
	for _, st := range p.Agents {
		a := &agent{AgentState: st, process: processes[st.Name]}
		a.Events = slices.Clone(st.Events)
		if a.process != nil {
			a.process.agent = a
		}
		s.agents = append(s.agents, a)
	}
	return nil
}

// check returns an error if a runtime cannot be in the state r.
func (r *RuntimeState) check() error {
	if _, ok := runtimeMoves[r.State]; !ok {
		return fmt.Errorf("%q is not a state of a runtime", r.State)
	}
	if r.State == rtRunning && (r.Event == nil || r.Event.Invocation == nil) {
		return fmt.Errorf("the runtime is %s without an invocation", r.State)
	}
	return nil
}

// checkAgents returns an error if a sandbox whose external agents have these processes
// cannot have agents in these states.
func checkAgents(list []AgentState, processes map[string]*process) error {
	names, ids, external := map[string]bool{}, map[string]bool{}, 0
	for i := range list {
		a := &list[i]
		_, known := agentMoves[a.State]
		_, launched := processes[a.Name]
		switch {
		case a.Name == "" || len(a.Name) > maxAgentName || names[a.Name]:
			return fmt.Errorf("extension name %.20q is invalid or not unique", a.Name)
		case !known:
			return fmt.Errorf("extension %s: %q is not a state of an extension", a.Name, a.State)
		case a.ID != "" && (uuid.Validate(a.ID) != nil || ids[a.ID]):
			return fmt.Errorf("extension %s: identifier %.40q is invalid or not unique", a.Name, a.ID)
		case a.Pending && a.Event == nil:
			return fmt.Errorf("extension %s: the pending event is missing", a.Name)
		case a.External && !launched:
			return fmt.Errorf("extension %s has no process in this sandbox", a.Name)
		case !a.External && launched:
			return fmt.Errorf("extension %s has a process only in this sandbox", a.Name)
		}
		names[a.Name], ids[a.ID] = true, true
		if a.External {
			external++
		}
	}
	if external != len(processes) {
		return fmt.Errorf("this sandbox has launched %d extensions, but the other %d", len(processes), external)
	}
	return nil
}
