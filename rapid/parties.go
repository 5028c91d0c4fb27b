package rapid

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// Parties is what the Runtime and Extensions APIs believe of the processes of one
// generation. It is plain data, and shares nothing with the sandbox that may change: it can
// be encoded by encoding/json or encoding/gob, kept, and given to another sandbox with
// [Sandbox.Adopt]. Calls that wait are not in it: whoever made one makes it again.
type Parties struct {
	Generation         uint64 // of the processes (LC-10)
	RegistrationClosed bool   // no extension can register any more (EX-14)
	Runtime            RuntimeState
	Agents             []AgentState // the launched ones first, then in order of registration
}

// RuntimeState is what the Runtime API believes of a runtime.
type RuntimeState struct {
	State       runtimeState // of the table of section 1.8
	RequestID   string       // the current one, "" for none: what RT-28 compares with
	Event       *Event       // what it works on; else nil, or the last one
	RestoreOwed bool         // the sandbox is restored, and the call of restore/next that is to say so has been lost
}

// AgentState is what the Extensions API believes of an extension.
type AgentState struct {
	Name      string
	ID        string     // identifier that its calls carry (EX-08); "" before it has registered
	External  bool       // it has a process of its own
	State     agentState // of the table of section 2.4
	Events    []string   // what it has registered for, sorted
	ErrorType string     // what it called its failure; "" for none
	Event     *Event     // what it works on, or is to be given (Pending); else nil, or the last one
	Pending   bool       // Event has not reached it (RT-25, LC-68)
}

// Parties returns what the APIs believe now. The error is that of ctx, or ErrDead.
func (s *Sandbox) Parties(ctx context.Context) (Parties, error) {
	return ask(ctx, s, &partiesMsg{newCall[Parties](ctx, noGeneration)})
}

type partiesMsg struct{ call[Parties] }

func (m *partiesMsg) serve(s *Sandbox) {
	// Events that nobody needs any more are left out: their payloads may be large, and
	// belong to the invoker again.
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

// Adopt makes the APIs believe p, which was taken from a sandbox of the same function: the
// processes of this one, which must be Initializing, are copies of those of the other. The
// calls that they make from then on go on where the others were, with the same identifiers,
// and the initialization is over when everybody in p is ready. Clients made before belong to
// the generation that ends here, unless it has the number of the other; their calls that
// wait end with ErrClosed.
//
// If p does not fit, the error says why, and nothing has changed. It may also be that of ctx,
// or ErrDead. The Events of p must not be changed afterwards.
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
		return fmt.Errorf("the sandbox is %v, which is too late", st)
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

// check says why no runtime can be in the state r.
func (r *RuntimeState) check() error {
	if _, ok := runtimeMoves[r.State]; !ok {
		return fmt.Errorf("a runtime has no state %q", r.State)
	}
	if r.State == rtRunning && (r.Event == nil || r.Event.Invocation == nil) {
		return fmt.Errorf("the runtime is %s without an invocation", r.State)
	}
	return nil
}

// checkAgents says why agents in these states cannot be those of a sandbox whose external
// agents have the processes given.
func checkAgents(list []AgentState, processes map[string]*process) error {
	names, ids, external := map[string]bool{}, map[string]bool{}, 0
	for i := range list {
		a := &list[i]
		_, known := agentMoves[a.State]
		_, launched := processes[a.Name]
		switch {
		case a.Name == "" || len(a.Name) > maxAgentName || names[a.Name]:
			return fmt.Errorf("%.20q is no name of an extension, or of two", a.Name)
		case !known:
			return fmt.Errorf("extension %s: an extension has no state %q", a.Name, a.State)
		case a.ID != "" && (uuid.Validate(a.ID) != nil || ids[a.ID]):
			return fmt.Errorf("extension %s: %.40q is no identifier, or that of two", a.Name, a.ID)
		case a.Pending && a.Event == nil:
			return fmt.Errorf("extension %s is to get an event that is missing", a.Name)
		case a.External && !launched:
			return fmt.Errorf("extension %s has no process in this sandbox", a.Name)
		case !a.External && launched:
			return fmt.Errorf("extension %s has a process in this sandbox alone", a.Name)
		}
		names[a.Name], ids[a.ID] = true, true
		if a.External {
			external++
		}
	}
	if external != len(processes) {
		return fmt.Errorf("this sandbox has launched %d extensions, the other %d", len(processes), external)
	}
	return nil
}
