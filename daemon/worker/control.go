package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
)

// errControl is the answer to requests that need the control process while it does not
// answer. It is started again meanwhile.
var errControl = &invoke.Fault{Status: http.StatusServiceUnavailable, Type: "ServiceException",
	Message: "The control process of sandboxd does not answer at the moment. Try again."}

// Limits of what the worker asks control for.
const (
	askTime      = 20 * time.Second // for an answer, except for resolve
	maxAnswer    = 1 << 20          // bytes of an answer; the variables of a function have 4 KiB
	askConns     = 64               // connections for questions
	passConns    = 256              // connections for the requests of clients
	idleConns    = 8                // of each that are kept open
	idleConnTime = time.Minute
)

// line is what the worker asks the supervisor for. A *privsep.Client is one.
type line interface {
	Connect(context.Context) (net.Conn, error)
	Retire(ctx context.Context, revision uint64) error
}

// controlClient asks the control process, over connections that the supervisor hands out. It
// implements control. If the control process has died, a new connection leads to the next one.
type controlClient struct {
	line    line
	http    *http.Client
	onError func(error) // receives why there is no answer, except that there is no process
}

func newControlClient(l line, onError func(error)) *controlClient {
	return &controlClient{line: l, http: &http.Client{Transport: newTransport(l, askConns)}, onError: onError}
}

// newTransport returns a transport for requests to the control process.
func newTransport(l line, conns int) *http.Transport {
	return &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return l.Connect(ctx) },
		MaxConnsPerHost: conns, MaxIdleConns: idleConns, MaxIdleConnsPerHost: idleConns, IdleConnTimeout: idleConnTime,
		MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
	}
}

// close closes the connections that are not in use.
func (c *controlClient) close() { c.http.CloseIdleConnections() }

func (c *controlClient) resolve(ctx context.Context, name, qualifier string) (*message.Resolved, error) {
	var r message.Resolved
	q := url.Values{"name": {name}, "qualifier": {qualifier}}
	return &r, c.ask(ctx, http.MethodGet, message.ResolvePath+"?"+q.Encode(), nil, &r)
}

func (c *controlClient) environment(ctx context.Context, number uint64) (vars map[string]string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	err = c.ask(ctx, http.MethodGet, message.EnvironmentPath+"?revision="+strconv.FormatUint(number, 10), nil, &vars)
	return vars, err
}

func (c *controlClient) verify(ctx context.Context, v message.Verify) (message.Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var verdict message.Verdict
	question, err := json.Marshal(v)
	if err == nil {
		err = c.ask(ctx, http.MethodPost, message.VerifyPath, question, &verdict)
	}
	return verdict, err
}

func (c *controlClient) retire(ctx context.Context, number uint64) error {
	return c.line.Retire(ctx, number)
}

// ask asks a question, and decodes the answer. No question changes anything, so one whose
// connection breaks is asked once more. The error is an *invoke.Fault, or that of ctx if its
// caller has given up.
func (c *controlClient) ask(ctx context.Context, method, target string, body []byte, answer any) error {
	err := c.askOnce(ctx, method, target, body, answer)
	if isBroken(err) && ctx.Err() == nil {
		err = c.askOnce(ctx, method, target, body, answer)
	}
	if _, ok := errors.AsType[*invoke.Fault](err); err == nil || ok {
		return err
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if !errors.Is(err, message.ErrNoControl) {
		c.onError(err)
	}
	return errControl
}

// isBroken reports whether err is that of a connection, and not an answer or a refusal to
// connect.
func isBroken(err error) bool {
	_, answered := errors.AsType[*invoke.Fault](err)
	return err != nil && !answered && !errors.Is(err, message.ErrNoControl)
}

func (c *controlClient) askOnce(ctx context.Context, method, target string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+message.ControlHost+target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return err
	case len(text) > maxAnswer:
		return fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	case res.StatusCode == http.StatusOK:
		return json.Unmarshal(text, answer)
	}
	var fault invoke.Fault
	if err := json.Unmarshal(text, &fault); err != nil || fault.Status < 400 || fault.Status > 599 {
		return fmt.Errorf("an answer with the status %s that is no refusal", res.Status)
	}
	return &fault
}

// listen answers what control asks the worker, on l, until the function that it returns is
// called.
func (w *worker) listen(l net.Listener) (stop func()) {
	server := &http.Server{Handler: w.answers(), ReadTimeout: askTime, WriteTimeout: askTime, IdleTimeout: 2 * idleConnTime,
		MaxHeaderBytes: 64 << 10, ErrorLog: log.New(io.Discard, "", 0)} // control learns of a failure itself
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(l) }) // until stop, or when the supervisor has exited
	return func() {
		server.Close()
		served.Wait()
	}
}

// answers returns the handler for what control asks.
func (w *worker) answers() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+message.WorkerHost+message.NumbersPath, w.numbers)
	mux.HandleFunc("POST "+message.WorkerHost+message.ForgetPath, w.forgetKey)
	mux.HandleFunc("GET "+message.WorkerHost+message.LogsPath, w.readLogs)
	mux.HandleFunc("POST "+message.WorkerHost+message.SwitchPath, func(rw http.ResponseWriter, r *http.Request) {
		var s message.Switch
		if err := json.NewDecoder(io.LimitReader(r.Body, maxAnswer)).Decode(&s); err != nil || s.Name == "" {
			http.Error(rw, "a switch is JSON with a name", http.StatusBadRequest)
			return
		}
		w.functions.switchTo(s)
		rw.WriteHeader(http.StatusNoContent)
	})
	return mux
}
