package rapid

// RuntimeState is what the Runtime API believes of a runtime.
type RuntimeState struct {
	State     runtimeState // of the table of section 1.8
	RequestID string       // the current one, "" for none: what RT-28 compares with
	Event     *Event       // what it is working on; nil for nothing
}

// AgentState is what the Extensions API believes of an extension.
type AgentState struct {
	Name      string
	ID        string     // identifier that its calls carry (EX-08); "" before it has registered
	External  bool       // it has a process of ours
	State     agentState // of the table of section 2.4
	Events    []string   // what it has registered for, sorted
	ErrorType string     // what it called its failure, "" for none
	Event     *Event     // what it was given last, or is to be given (Pending); nil for nothing
	Pending   bool       // Event has not reached it (RT-25, LC-68)
}
