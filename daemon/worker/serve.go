package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/rapid"
)

// maxEventBytes is the largest event of --event (INV-08).
const maxEventBytes = 6 << 20

// serve serves requests on l, and on web if it is not nil, until ctx ends, then waits for
// running ones. When w.drain ends, it shuts the functions down, which fails the requests that
// still run. If one listener fails, it ends the other.
func (w *worker) serve(ctx context.Context, l, web net.Listener) error {
	c := w.config
	config := invoke.Config{
		Functions: w.functions, Region: c.Region, AccountID: c.AccountID,
		DrainTimeout: c.DrainTimeout + teardownTime,
		OnError:      func(err error) { w.log.WithError(err).Error("request failed") },
	}
	if c.Control {
		defer w.serveAPI(&config)()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.KeyPair != nil {
		endpoint, err := newCertificates(c.KeyPair)
		if err != nil {
			return err
		}
		c.KeyPair, config.TLS = nil, endpoint.config.Load
		go endpoint.keep(ctx, w.client.KeyPair, func(err error) {
			w.log.WithError(err).Error("the certificate of the endpoint could not be renewed; the one that it has stays")
		})
	}
	server := invoke.New(config)
	served := make(chan error, 2)
	running := 1
	if web != nil {
		running++
		front := invoke.Web{Function: c.Revisions[0].Name, Mode: invoke.InvokeMode(c.Web.Mode), Hosts: c.Web.Hosts}
		w.log.WithFields(logrus.Fields{"http": web.Addr().String(), "function": front.Function}).Info("the function answers HTTP requests")
		w.warnOfNetwork(web, "--http", "can run the function and see what it answers")
		go func() { served <- server.ServeWeb(ctx, web, front) }()
	}
	fields := logrus.Fields{"addr": l.Addr().String(), "instance": c.Instance}
	if len(c.Revisions) == 1 {
		fields["function"] = c.Revisions[0].Name
	}
	w.log.WithFields(fields).Info("listening")
	if !c.Control {
		w.warnOfNetwork(l, "--listen", "can invoke the function")
	}
	go func() { served <- server.Serve(ctx, l) }()
	var errs []error
	drain := w.drain.Done()
	for running > 0 {
		select {
		case err := <-served:
			errs = append(errs, err)
			running--
			cancel() // of the other, if this one has failed
		case <-drain:
			drain = nil
			_ = w.functions.shutdown(w.drain) // run calls shutdown again and returns its error
		}
	}
	return errors.Join(errs...)
}

// serveAPI changes the configuration of a server to that of an endpoint of many
// functions: callers sign their requests, and the control process answers those that are no
// invocations. The function that it returns releases what that holds.
func (w *worker) serveAPI(config *invoke.Config) (release func()) {
	passer := newPasser(w.client, w.authorizer.parse, config.OnError)
	config.Functions, config.Authorize, config.Pass, config.NoEvents = w.counted, w.authorizer.invocation, passer, true
	config.MaxConns = max(minConns, w.config.Concurrency+minConns/2) // each invocation has one
	return passer.close
}

// minConns is the least number of connections of clients of an endpoint of many functions.
const minConns = 256

// warnOfNetwork warns if hosts of the network can connect to the address of a flag.
func (w *worker) warnOfNetwork(l net.Listener, flag, what string) {
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		w.log.Warnf("other hosts can reach the address of %s, which has no authentication: they %s", flag, what)
	}
}

// invokeOnce runs one invocation of the function and writes its response to out. If ctx
// ends first, it aborts the invocation.
func (w *worker) invokeOnce(ctx context.Context, name string, event []byte, out io.Writer) error {
	type answer struct {
		*rapid.Result
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		res, err := w.functions.find(name).fleet.Invoke(ctx, &rapid.Invocation{ID: uuid.NewString(), Payload: event, Arrived: time.Now()})
		if err == nil {
			<-res.Done // so that the REPORT line is printed before the exit
		}
		answers <- answer{res, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		cut, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cancel()
		_ = w.functions.shutdown(cut) // run calls shutdown again and returns its error
		<-answers
		return errors.New("interrupted before the invocation was over")
	}
	if a.err != nil {
		return a.err
	}
	if _, err := out.Write(a.Payload); err != nil {
		return fmt.Errorf("write the response: %w", err)
	}
	if a.FunctionError {
		return &exit.Error{Code: exit.Function}
	}
	return nil
}

// readEvent reads the event of --event from in, and checks it as the endpoint does (INV-08,
// INV-09). name is the value of --event, for errors.
func readEvent(name string, in io.Reader) ([]byte, error) {
	event, err := io.ReadAll(io.LimitReader(in, maxEventBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("--event %s: %w", name, err)
	case len(event) > maxEventBytes:
		return nil, fmt.Errorf("--event %s: the event is larger than the limit of %d bytes", name, maxEventBytes)
	case len(event) == 0:
		return []byte("{}"), nil
	case !json.Valid(event):
		return nil, fmt.Errorf("--event %s: the event is not valid JSON", name)
	case !utf8.Valid(event):
		return nil, fmt.Errorf("--event %s: the event is not valid JSON: it is not UTF-8", name)
	}
	return event, nil
}
