package rapid

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// Subscribe subscribes an agent to the sandbox's records (section 3.1); body is what
// the agent has sent.
func (c *Client) Subscribe(ctx context.Context, agentID string, api telemetry.API, body []byte) error {
	m := func() *subscribeMsg {
		return &subscribeMsg{agentID: agentID, api: api, call: newCall[struct{}](ctx, c.gen)}
	}
	if _, err := ask(ctx, c.s, m()); err != nil { // before anything is done for a stranger
		return err
	}
	_, port, err := net.SplitHostPort(c.s.cfg.APIAddr)
	if err != nil {
		return hostError("address of the Runtime API", err)
	}
	apiPort, err := strconv.Atoi(port)
	if err != nil {
		return hostError("port of the Runtime API", err)
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
	ctx = context.WithoutCancel(ctx) // from here on it takes the connection over
	last := m()
	last.sub, last.conn = sub, conn
	if _, err = ask(ctx, c.s, last); err != nil && conn != nil {
		_ = conn.Close() // nothing was written to it
	}
	return err
}

// subscribeMsg asks whether an agent may subscribe, and with sub does it.
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

// closedSubscription is TL-10's.
func closedSubscription(api telemetry.API) *Refusal {
	return &Refusal{Type: RefusalType(api + ".SubscriptionClosed"), Message: string(api) + " API subscription is closed already"}
}

// invalidSubscription is TL-09's.
func invalidSubscription(api telemetry.API, err error) *Refusal {
	t := ValidationError
	if api == telemetry.LogsAPI {
		t = LogsValidationError
	}
	return &Refusal{Type: t, Message: err.Error()}
}

// dial connects to a listener inside the sandbox. Nothing that a process says can lead
// it anywhere else (TL-23).
func (s *Sandbox) dial(ctx context.Context, port int) (net.Conn, error) {
	return s.sup.Dial(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}
