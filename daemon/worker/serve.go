package worker

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

	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/rapid"
)

// maxEventBytes is the largest event of --event (INV-08).
const maxEventBytes = 6 << 20

// serve serves requests on l until ctx ends, then waits for running ones. When w.drain
// ends, it shuts the functions down, which fails the requests that still run.
func (w *worker) serve(ctx context.Context, l net.Listener) error {
	c := w.config
	server := invoke.New(invoke.Config{
		Functions: w.functions, Region: c.Region, AccountID: c.AccountID,
		DrainTimeout: c.DrainTimeout + teardownTime,
		OnError:      func(err error) { w.log.WithError(err).Error("request failed") },
	})
	fields := logrus.Fields{"addr": l.Addr().String(), "instance": c.Instance}
	if len(c.Revisions) == 1 {
		fields["function"] = c.Revisions[0].Name
	}
	w.log.WithFields(fields).Info("listening")
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		w.log.Warn("other hosts can reach the endpoint at the address of --listen, and it has no authentication")
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	select {
	case err := <-served:
		return err
	case <-w.drain.Done():
		_ = w.functions.shutdown(w.drain) // run calls shutdown again and returns its error
		return <-served
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
	}
	return event, nil
}
