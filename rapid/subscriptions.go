package rapid

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// Subscribe subscribes an agent to the sandbox's records (section 3.1). body is the body of
// the agent's request.
func (c *Client) Subscribe(ctx context.Context, agentID string, api telemetry.API, body []byte) error {
	m := func() *subscribeMsg {
		return &subscribeMsg{agentID: agentID, api: api, call: newCall[struct{}](ctx, c.gen)}
	}
	if _, err := ask(ctx, c.s, m()); err != nil { // before any work for an unknown caller
		return err
	}
	_, port, err := net.SplitHostPort(c.s.cfg.APIAddr)
	if err != nil {
		return hostError("parse the address of the Runtime API", err)
	}
	apiPort, err := strconv.Atoi(port)
	if err != nil {
		return hostError("parse the port of the Runtime API", err)
	}
	sub, err := telemetry.ParseSubscription(api, body, apiPort)
	if only := c.s.traits.schema; err == nil && only != "" && sub.Schema != only {
		err = fmt.Errorf("schemaVersion should be %s", only)
	}
	if err != nil {
		return invalidSubscription(api, err)
	}
	conn, err := c.s.hub.Connect(ctx, sub)
	if err != nil {
		return invalidSubscription(api, err) // TL-13
	}
	ctx = context.WithoutCancel(ctx) // the message below passes on the connection, so its result is needed
	last := m()
	last.sub, last.conn = sub, conn
	if _, err = ask(ctx, c.s, last); err != nil && conn != nil {
		_ = conn.Close() // nothing was written to it
	}
	return err
}

// subscribeMsg checks whether an agent may subscribe; if sub is set, it subscribes the agent.
type subscribeMsg struct {
	agentID string
	api     telemetry.API
	sub     *telemetry.Subscription
	conn    net.Conn // of a TCP subscription
	call[struct{}]
}

func (m *subscribeMsg) serve(s *Sandbox) {
	a, refusal := s.agentByID(m.agentID)
	if refusal != nil {
		m.refuse(refusal)
		return
	}
	if s.State() != Initializing || s.hub == nil {
		m.refuse(closedSubscription(m.api))
		return
	}
	if m.sub != nil {
		changed, err := s.hub.Subscribe(a.Name, m.sub, m.conn)
		switch {
		case errors.Is(err, telemetry.ErrClosedWindow):
			m.refuse(closedSubscription(m.api))
			return
		case err != nil:
			m.refuse(invalidSubscription(m.api, err))
			return
		case changed:
			s.log.Platform(&telemetry.Subscribed{API: m.api, Name: a.Name, State: "Subscribed", Types: m.sub.Types})
		}
	}
	m.answer(struct{}{})
}

// closedSubscription returns the refusal of TL-10.
func closedSubscription(api telemetry.API) *Refusal {
	return &Refusal{Type: RefusalType(api + ".SubscriptionClosed"), Message: string(api) + " API subscription is closed already"}
}

// invalidSubscription returns the refusal of TL-09.
func invalidSubscription(api telemetry.API, err error) *Refusal {
	t := ValidationError
	if api == telemetry.LogsAPI {
		t = LogsValidationError
	}
	return &Refusal{Type: t, Message: err.Error()}
}

// dial connects to a port of the sandbox's loopback address, and to no other address (TL-23).
func (s *Sandbox) dial(ctx context.Context, port int) (net.Conn, error) {
	return s.sup.Dial(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}
