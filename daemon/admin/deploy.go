package admin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// FunctionChange is what [Operators.Deploy] makes of a function. Zero values keep what an existing
// function has.
type FunctionChange struct {
	Name             string
	Runtime, Handler string
	MemoryMB         int
	Timeout          int // seconds
	Env              map[string]string
	Code             io.ReadSeeker // a zip, from its beginning
}

// Deployed is a function as the API describes it.
type Deployed struct {
	ARN              string `json:"FunctionArn"`
	State            string
	StateReason      string
	LastUpdateStatus string
	UpdateReason     string `json:"LastUpdateStatusReason"`
}

// noRole is the role of functions that are made without one.
const noRole = "arn:aws:iam::000000000000:role/none"

// deployPoll is how often Deploy asks whether a function is active: as the API does, it has to
// be asked.
const deployPoll = 200 * time.Millisecond

// Deploy creates a function, or updates it if it exists, and waits until that is in force.
func (o *Operators) Deploy(ctx context.Context, c FunctionChange) (Deployed, error) {
	path := APIPath + "functions/" + c.Name
	_, err := o.api(ctx, http.MethodGet, path+"/configuration", nil)
	switch {
	case isType(err, "ResourceNotFoundException"):
		if c.Runtime == "" {
			return Deployed{}, errors.New("there is no such function yet: give a new one its --runtime and --handler")
		}
		fields := c.configuration()
		fields["FunctionName"], fields["Role"] = c.Name, noRole
		if c.Handler == "" && strings.HasPrefix(c.Runtime, "provided") {
			fields["Handler"] = "bootstrap" // which it does not use, and the API asks for
		}
		if _, err := o.api(ctx, http.MethodPost, APIPath+"functions", c.withCode(fields, `"Code":{"ZipFile":"`, `"}`)); err != nil {
			return Deployed{}, err
		}
		return o.settled(ctx, path)
	case err != nil:
		return Deployed{}, err
	}
	if _, err := o.settled(ctx, path); err != nil && !errors.Is(err, errFailed) { // else it is repaired now
		return Deployed{}, err
	}
	if fields := c.configuration(); len(fields) > 0 {
		body, err := json.Marshal(fields)
		if err != nil {
			return Deployed{}, err
		}
		if _, err := o.api(ctx, http.MethodPut, path+"/configuration", bodyOf(body)); err != nil {
			return Deployed{}, err
		}
		if _, err := o.settled(ctx, path); err != nil && !errors.Is(err, errFailed) { // new code may be what it lacks
			return Deployed{}, err
		}
	}
	if _, err := o.api(ctx, http.MethodPut, path+"/code", c.withCode(map[string]any{}, `"ZipFile":"`, `"`)); err != nil {
		return Deployed{}, err
	}
	return o.settled(ctx, path)
}

// configuration returns the fields that are set.
func (c *FunctionChange) configuration() map[string]any {
	fields := map[string]any{}
	if c.Runtime != "" {
		fields["Runtime"] = c.Runtime
	}
	if c.Handler != "" {
		fields["Handler"] = c.Handler
	}
	if c.MemoryMB != 0 {
		fields["MemorySize"] = c.MemoryMB
	}
	if c.Timeout != 0 {
		fields["Timeout"] = c.Timeout
	}
	if c.Env != nil {
		fields["Environment"] = map[string]any{"Variables": c.Env}
	}
	return fields
}

// A content writes the body of a request.
type content func(io.Writer) error

func bodyOf(b []byte) content {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

// withCode returns fields as JSON, with the code in one more: it is encoded as it is sent.
func (c *FunctionChange) withCode(fields map[string]any, before, after string) content {
	return func(w io.Writer) error {
		head, err := json.Marshal(fields)
		if err != nil {
			return err
		}
		text := string(head[:len(head)-1])
		if len(fields) > 0 {
			text += ","
		}
		if _, err := io.WriteString(w, text+before); err != nil {
			return err
		}
		if _, err := c.Code.Seek(0, io.SeekStart); err != nil {
			return err
		}
		e := base64.NewEncoder(base64.StdEncoding, w)
		if _, err := io.Copy(e, c.Code); err != nil {
			return err
		}
		if err := e.Close(); err != nil {
			return err
		}
		_, err = io.WriteString(w, after+"}")
		return err
	}
}

// errFailed is the kind of the error if a function or its last update has failed.
var errFailed = errors.New("it has failed")

// settled waits until no change of a function is under way.
func (o *Operators) settled(ctx context.Context, path string) (d Deployed, err error) {
	for {
		text, err := o.api(ctx, http.MethodGet, path+"/configuration", nil)
		if err != nil {
			return d, err
		}
		d = Deployed{}
		if err := json.Unmarshal(text, &d); err != nil {
			return d, err
		}
		switch {
		case d.State == "Failed":
			return d, fmt.Errorf("%w: %s", errFailed, d.StateReason)
		case d.LastUpdateStatus == "Failed":
			return d, fmt.Errorf("%w: %s", errFailed, d.UpdateReason)
		case d.State != "Pending" && d.LastUpdateStatus != "InProgress":
			return d, nil
		}
		timer := time.NewTimer(deployPoll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return d, fmt.Errorf("the function is not active yet: %w", ctx.Err())
		}
	}
}

// apiError is an error of the Lambda API.
type apiError struct{ kind, message string }

func (e *apiError) Error() string { return e.kind + ": " + e.message }

func isType(err error, kind string) bool {
	e, ok := errors.AsType[*apiError](err)
	return ok && e.kind == kind
}

// api sends a request to the Lambda API on the operators' socket.
func (o *Operators) api(ctx context.Context, method, path string, body content) ([]byte, error) {
	var r io.ReadCloser
	if body != nil {
		in, out := io.Pipe()
		written := make(chan struct{})
		go func() {
			out.CloseWithError(body(out))
			close(written)
		}()
		defer func() { <-written }()
		defer in.Close()
		r = in
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://sandboxd"+path, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := o.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask daemon %s: %w", o.ID, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxListBytes))
	if err != nil {
		return nil, fmt.Errorf("read the answer of daemon %s: %w", o.ID, err)
	}
	if res.StatusCode < 300 {
		return text, nil
	}
	var e struct{ Message string }
	if json.Unmarshal(text, &e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("%s: %.200q", res.Status, text)
	}
	return nil, &apiError{res.Header.Get("X-Amzn-Errortype"), e.Message}
}

// Endpoint returns where clients reach the Lambda API.
func (o *Operators) Endpoint(ctx context.Context) (e Endpoint, err error) {
	return e, o.ask(ctx, http.MethodGet, EndpointPath, nil, &e)
}
