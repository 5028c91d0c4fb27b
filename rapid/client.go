package rapid

import (
	"context"
	"errors"
	"fmt"
)

// Client makes the calls that arrive on one connection from a process inside the sandbox. It
// belongs to the generation of processes at the time of NewClient: once these processes are
// gone, every call returns ErrClosed (RT-59), so that a late message of a dead process
// cannot affect the next generation. Methods are safe for concurrent use. Their errors are a
// *Refusal, ErrClosed, or the error of the context.
type Client struct {
	// HungUp reports whether the peer has closed the connection. It may know that before the
	// context of a waiting call ends. It must not block, and must be set before the first
	// call. If it is nil, only the contexts are used.
	HungUp func() bool

	s   *Sandbox
	gen uint64
}

// NewClient returns a client for the current generation of processes.
func (s *Sandbox) NewClient() *Client { return &Client{s: s, gen: s.gen.Load()} }

// ErrClosed reports that the caller's generation of processes is gone. Close its connection.
var ErrClosed = errors.New("the processes that made the connection are gone")

// Next blocks until there is an event for the runtime (section 1.3). If ctx ends first, an
// event that was already assigned to the call is delivered to the next one (RT-25).
func (c *Client) Next(ctx context.Context) (*Event, error) {
	return c.next(ctx, &nextMsg{hungUp: c.HungUp, call: newCall[*Event](ctx, c.gen)})
}

// NextEvent blocks until there is an event for the agent (EX-18).
func (c *Client) NextEvent(ctx context.Context, agentID string) (*Event, error) {
	return c.next(ctx, &nextMsg{isAgent: true, agentID: agentID, call: newCall[*Event](ctx, c.gen)})
}

func (c *Client) next(ctx context.Context, m *nextMsg) (*Event, error) {
	e, err := ask(ctx, c.s, m)
	if err != nil && ctx.Err() != nil {
		c.s.send(&undeliveredMsg{waiter: m, call: newCall[struct{}](ctx, c.gen)})
	}
	return e, err
}

// Undelivered returns an event that could not be written to the client, so that the next
// call gets it. agentID is "" for an event of Next, else the argument of NextEvent.
func (c *Client) Undelivered(agentID string, e *Event) {
	w := &nextMsg{isAgent: agentID != "", agentID: agentID, event: e}
	c.s.send(&undeliveredMsg{waiter: w, call: newCall[struct{}](context.Background(), c.gen)})
}

// BeginAnswer begins the runtime's answer to the invocation id, or refuses it, before the
// body is read (RT-28). The caller must call FinishAnswer. It passes the body to the Stream
// if that is not nil, else to FinishAnswer.
func (c *Client) BeginAnswer(ctx context.Context, id string, h AnswerHead) (*Stream, error) {
	return ask(ctx, c.s, &beginAnswerMsg{id: id, head: h, call: newCall[*Stream](ctx, c.gen)})
}

// FinishAnswer completes an answer that BeginAnswer has begun, with its body. The end of ctx
// does not cancel it.
func (c *Client) FinishAnswer(ctx context.Context, id string, a Answer) error {
	ctx = context.WithoutCancel(ctx) // the answer counts even if the client has gone
	_, err := ask(ctx, c.s, &finishAnswerMsg{id: id, body: a, call: newCall[struct{}](ctx, c.gen)})
	return err
}

// BeginInitError begins a failure report about the runtime's initialization (RT-49). The
// caller must call FinishInitError.
func (c *Client) BeginInitError(ctx context.Context) error {
	_, err := ask(ctx, c.s, &beginInitErrorMsg{call: newCall[struct{}](ctx, c.gen)})
	return err
}

// BeginRestoreError begins a failure report about the runtime's hooks after a restore
// (RT-55). The caller must call FinishInitError.
func (c *Client) BeginRestoreError(ctx context.Context) error {
	_, err := ask(ctx, c.s, &beginInitErrorMsg{restore: true, call: newCall[struct{}](ctx, c.gen)})
	return err
}

// RestoreNext records that the runtime is ready for its snapshot, and blocks until the
// sandbox is restored (RT-53).
func (c *Client) RestoreNext(ctx context.Context) error {
	_, err := ask(ctx, c.s, &restoreNextMsg{newCall[struct{}](ctx, c.gen)})
	return err
}

// Credentials returns the credentials for a process that presents the sandbox's token
// (RT-72). For any other token the error is ErrUnknownToken.
func (c *Client) Credentials(ctx context.Context, token string) (Credentials, error) {
	return ask(ctx, c.s, &credentialsMsg{token: token, call: newCall[Credentials](ctx, c.gen)})
}

// FinishInitError completes the failure report with its body (RT-50).
func (c *Client) FinishInitError(ctx context.Context, e InitError) error {
	ctx = context.WithoutCancel(ctx)
	_, err := ask(ctx, c.s, &finishInitErrorMsg{posted: e, call: newCall[struct{}](ctx, c.gen)})
	return err
}

// Register registers an extension (section 2.2).
func (c *Client) Register(ctx context.Context, r Registration) (*Registered, error) {
	return ask(ctx, c.s, &registerMsg{reg: r, call: newCall[*Registered](ctx, c.gen)})
}

// FailAgent records the failure report of an extension (EX-22, EX-23).
func (c *Client) FailAgent(ctx context.Context, agentID string, f AgentFailure) error {
	_, err := ask(ctx, c.s, &failAgentMsg{agentID: agentID, failure: f, call: newCall[struct{}](ctx, c.gen)})
	return err
}

// A message is a request to read or change the state of the sandbox. The holder of the token
// serves it; serve never blocks. Each message is answered exactly once, by serve or later.
type message interface {
	serve(*Sandbox)
	generation() uint64 // of the sender's process, or noGeneration
	refuse(error)
}

type reply[T any] struct {
	val T
	err error
}

// noGeneration is the generation of messages that do not come from a process.
const noGeneration = ^uint64(0)

// A call is the reply half of a message. The channel has room for the reply, so the holder
// of the token never waits for the caller.
type call[T any] struct {
	ctx   context.Context
	gen   uint64 // of the client, or noGeneration
	reply chan reply[T]
}

func newCall[T any](ctx context.Context, gen uint64) call[T] {
	return call[T]{ctx, gen, make(chan reply[T], 1)}
}
func (c *call[T]) answer(v T)             { c.reply <- reply[T]{val: v} }
func (c *call[T]) refuse(err error)       { c.reply <- reply[T]{err: err} }
func (c *call[T]) replies() chan reply[T] { return c.reply }
func (c *call[T]) generation() uint64     { return c.gen }

// ask sends m and waits for the reply. The error is that of the reply or of ctx. If the
// sandbox is dead, it is ErrClosed for a message of a process, and else ErrDead, which wraps
// the cause.
func ask[T any](ctx context.Context, s *Sandbox, m interface {
	message
	replies() chan reply[T]
}) (T, error) {
	var zero T
	gone := func() error {
		if m.generation() == noGeneration {
			return s.whyDead()
		}
		return ErrClosed
	}
	if err := ctx.Err(); err != nil { // do not send a request that is canceled already
		return zero, err
	}
	if s.serveNow(m) {
		select {
		case r := <-m.replies():
			return r.val, r.err
		default: // parked
		}
	} else {
		select {
		case s.inbox <- m:
		case <-s.dead:
			return zero, gone()
		case <-ctx.Done():
			return zero, ctx.Err()
		}
	}
	select {
	case r := <-m.replies():
		return r.val, r.err
	case <-s.dead: // Run may have answered just before it returned
		select {
		case r := <-m.replies():
			return r.val, r.err
		default:
			return zero, gone()
		}
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// send sends a message whose reply is not needed.
func (s *Sandbox) send(m message) {
	if s.serveNow(m) {
		return
	}
	select {
	case s.inbox <- m:
	case <-s.dead:
	}
}

// whyDead returns ErrDead, wrapped with the fault of the host that has ended the sandbox, if
// there is one. The caller must hold the token, or the sandbox must be dead.
func (s *Sandbox) whyDead() error {
	if s.broken == nil {
		return ErrDead
	}
	return fmt.Errorf("%w: %w", ErrDead, s.broken)
}

// serve answers or parks m, unless its sender's generation is gone. The caller holds the
// token.
func (s *Sandbox) serve(m message) {
	if g := m.generation(); g != noGeneration && g != s.gen.Load() {
		m.refuse(ErrClosed)
		return
	}
	m.serve(s)
}

type invokeMsg struct {
	inv  *Invocation
	left chan struct{} // if inv.Stream: closed when Invoke returns without a Result
	call[*Result]
}

func (m *invokeMsg) serve(s *Sandbox) {
	switch st := s.State(); {
	case st == ShuttingDown || st == Dead || s.lost || s.broken != nil:
		m.refuse(ErrDead)
	default:
		s.mode.admit(m)
	}
}
