package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/rapid"
)

// maxEventBytes bounds the event of --event (INV-08).
const maxEventBytes = 6 << 20

// serve answers requests on l until ctx ends, then drains. The fleet's shutdown
// answers what still runs when the time for that is up.
func (w *worker) serve(ctx context.Context, l net.Listener) error {
	o := &w.order
	server := invoke.New(invoke.Config{
		Fleet: w.fleet, Name: o.Function.Name, Version: functionVersion, ARN: o.Function.ARN, Tenants: o.Tenants,
		DrainTimeout: o.DrainTimeout + teardownTime,
		OnError:      func(err error) { w.log.WithError(err).Error("request failed") },
	})
	if o.Provisioned > 0 {
		w.log.WithField("sandboxes", o.Provisioned).Info("initializing")
		if err := w.fleet.Provision(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	w.log.WithFields(logrus.Fields{"addr": l.Addr().String(), "instance": o.Instance, "function": o.Function.Name}).Info("listening")
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		w.log.Warn("the endpoint has no authentication, and --listen lets other hosts reach it")
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	select {
	case err := <-served:
		return err
	case <-w.drain.Done():
		_ = w.fleet.Shutdown(w.drain) // close asks again, and tells the error
		return <-served
	}
}

// invokeOnce runs one invocation and writes its response to out. When ctx ends first
// the invocation is cut short.
func (w *worker) invokeOnce(ctx context.Context, event []byte, out io.Writer) error {
	type answer struct {
		*rapid.Result
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		res, err := w.fleet.Invoke(ctx, &rapid.Invocation{ID: uuid.NewString(), Payload: event, Arrived: time.Now()})
		if err == nil {
			<-res.Done // the REPORT comes before the end
		}
		answers <- answer{res, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		cut, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cancel()
		_ = w.fleet.Shutdown(cut) // close asks again, and tells the error
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
		return &exitError{code: exitFunction}
	}
	return nil
}

// readEvent reads the event of --event, which is our standard input, and checks it as
// the endpoint would (INV-08, INV-09). name is how the user knows it.
func readEvent(name string, in io.Reader) ([]byte, error) {
	event, err := io.ReadAll(io.LimitReader(in, maxEventBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("--event %s: %w", name, err)
	case len(event) > maxEventBytes:
		return nil, fmt.Errorf("--event %s: is over the limit of %d bytes", name, maxEventBytes)
	case len(event) == 0:
		return []byte("{}"), nil
	case !json.Valid(event):
		return nil, fmt.Errorf("--event %s: is not JSON", name)
	}
	return event, nil
}
