package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/host/instance"
)

const (
	// maxListBytes is the largest answer of a daemon; 4,094 sandboxes take 2 MB.
	maxListBytes = 16 << 20
	// askTime is how long one daemon may take to answer.
	askTime = 5 * time.Second
)

// List returns the sandboxes of all daemons below runDir, oldest first, and an error for
// each daemon that did not answer. If only the worker of a daemon does not answer, List
// returns its sandboxes with the facts of the supervisor. The list is nil only if the
// daemons could not be listed.
func List(ctx context.Context, runDir string) ([]Sandbox, error) {
	instances, err := instance.List(runDir)
	if err != nil {
		return nil, err
	}
	all := []Sandbox{}
	var errs []error
	for _, i := range instances {
		if !i.Alive {
			continue
		}
		list, err := ask(ctx, i)
		if err != nil {
			errs = append(errs, fmt.Errorf("daemon %s does not answer: %w", i.ID, err))
		}
		all = append(all, list...)
	}
	slices.SortStableFunc(all, func(a, b Sandbox) int { return a.Created.Compare(b.Created) })
	return all, errors.Join(errs...)
}

// Find returns the sandbox whose id is prefix, or else the only one whose id begins with it.
func Find(list []Sandbox, prefix string) (Sandbox, error) {
	var found []Sandbox
	for _, s := range list {
		if s.ID == prefix {
			return s, nil
		}
		if strings.HasPrefix(s.ID, prefix) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Sandbox{}, fmt.Errorf("no sandbox has the id %q; 'sandboxd ps' lists them", prefix)
	}
	return Sandbox{}, fmt.Errorf("%d sandboxes have ids that begin with %q; give more of the id ('sandboxd ps' lists them)", len(found), prefix)
}

// ask returns the sandboxes of one daemon. A daemon that is starting or exiting has none.
func ask(ctx context.Context, i instance.Info) ([]Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	facts, err := askFacts(ctx, i.FactSocket())
	if absent(err) {
		return nil, otherVersion(ctx, i)
	}
	if err != nil {
		return nil, err
	}
	report, err := askReport(ctx, i.ControlSocket())
	if absent(err) {
		err = nil
	}
	return join(i.ID, facts, report), err
}

// otherVersion returns an error if the daemon i, which has no fact socket, is of version
// 0.1.0: its worker gives a list where later ones give a [Report].
func otherVersion(ctx context.Context, i instance.Info) error {
	_, err := askReport(ctx, i.ControlSocket())
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return errors.New("it is of an earlier version of sandboxd: use the ps and inspect of that version")
	}
	return nil // it is starting or exiting
}

// absent reports whether err says that no process listens on a socket.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// join combines the facts of one daemon with the report of its worker.
func join(instance string, facts []Fact, report Report) (list []Sandbox) {
	states := map[string]State{}
	for _, s := range report.Sandboxes {
		states[s.ID] = s
	}
	for _, f := range facts {
		s := Sandbox{Fact: f, Instance: instance, Function: report.Functions[f.Revision.Number], Version: report.Versions[f.Revision.Number], State: StateUnknown}
		if st, ok := states[f.ID]; ok {
			s.State, s.Invocations = st.State, st.Invocations
			s.Network.LookupsAnswered, s.Network.LookupsRefused = st.LookupsAnswered, st.LookupsRefused
		}
		if f.Quarantined {
			s.State = StateQuarantined
		}
		list = append(list, s)
	}
	return list
}

func askFacts(ctx context.Context, socket string) (facts []Fact, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = json.NewDecoder(io.LimitReader(conn, maxListBytes)).Decode(&facts)
	if errors.Is(err, io.EOF) {
		err = errors.New("it closed the connection without an answer")
	}
	return facts, err
}

func askReport(ctx context.Context, socket string) (r Report, err error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sandboxd"+reportPath, nil)
	if err != nil {
		return r, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return r, fmt.Errorf("its worker answered with status %d", resp.StatusCode)
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, maxListBytes)).Decode(&r)
	return r, err
}
