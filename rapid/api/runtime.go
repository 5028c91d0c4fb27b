package api

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/internal/httpfast"
	"github.com/sandboxd/sandboxd/rapid"
)

// next is GET …/runtime/invocation/next (section 1.3).
func next(r *request) error {
	e, err := r.event()
	if err != nil {
		return err
	}
	inv, h := e.Invocation, r.Header()
	set := func(name, value string) {
		if value != "" { // RT-21
			h[name] = []string{value}
		}
	}
	set("Lambda-Runtime-Aws-Request-Id", inv.ID)
	set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(e.Deadline.UnixMilli(), 10))
	set("Lambda-Runtime-Invoked-Function-Arn", inv.FunctionARN)
	set("Lambda-Runtime-Trace-Id", inv.TraceID)
	set("Lambda-Runtime-Client-Context", inv.ClientContext)
	set("Lambda-Runtime-Cognito-Identity", inv.CognitoIdentity)
	set("Lambda-Runtime-Aws-Tenant-Id", inv.TenantID)
	set("Lambda-Runtime-Invocation-Id", e.Nonce)
	set("Content-Length", strconv.Itoa(len(inv.Payload))) // RT-12
	set("Content-Type", "application/json")               // RT-20: not the caller's
	r.deliver("", e, inv.Payload)
	return nil
}

// event waits for the runtime's event. No goroutine watches the connection of a hot request
// meanwhile, so event checks the connection when the event arrives.
func (r *request) event() (*rapid.Event, error) {
	c := connOf(r.Request)
	if !c.hot {
		return r.client.Next(r.ctx())
	}
	c.phase.Store(int32(waiting))
	e, err := r.client.Next(r.ctx())
	c.phase.Store(int32(handling))
	if err == nil && c.hungUp() {
		r.client.Undelivered("", e)
		return nil, rapid.ErrClosed
	}
	return e, err
}

// deliver writes an event. If that fails, the next call gets the event (RT-25).
func (r *request) deliver(agentID string, e *rapid.Event, body []byte) {
	r.WriteHeader(http.StatusOK)
	_, err := r.Write(body)
	if err == nil {
		err = http.NewResponseController(r.ResponseWriter).Flush()
	}
	if err != nil {
		r.client.Undelivered(agentID, e)
	}
}

// answer is POST …/runtime/invocation/{id}/response and …/error (1.4, 1.5).
func answer(id string, kind rapid.AnswerKind) func(*request) error {
	return func(r *request) error {
		a := rapid.Answer{Kind: kind, ContentType: r.get("Content-Type")}
		stream, err := r.client.BeginAnswer(r.ctx(), id, rapid.AnswerHead{
			Kind:        kind,
			Nonce:       r.get("Lambda-Runtime-Invocation-Id"),
			Mode:        r.mode(),
			ContentType: a.ContentType,
		})
		if err != nil {
			return err
		}
		r.arrival.ReadCloser = r.Body
		r.Body = &r.arrival
		if stream == nil {
			a.Payload, a.Seen, a.TooLarge, a.Truncated = r.body(r.sandbox.BodyLimit(kind))
		} else {
			if a.Seen, a.TooLarge, a.Truncated, err = r.stream(stream); err != nil {
				return err
			}
		}
		a.First, a.Last = r.arrival.first, time.Now()
		if kind == rapid.AnswerError {
			a.ErrorType = r.get("Lambda-Runtime-Function-Error-Type")
			a.Cause = []byte(r.get("Lambda-Runtime-Function-Xray-Error-Cause"))
		}
		a.TrailerType, a.TrailerBody = trailers(r.Trailer)
		if err := r.client.FinishAnswer(r.ctx(), id, a); err != nil {
			if stream != nil && a.TooLarge {
				r.discard() // the invoker has been answered
			}
			return err
		}
		r.accept()
		return nil
	}
}

// mode returns the mode of a response. A response that announces the error trailers is
// streamed even without the header: aws-lambda-go always sends it so (RT-69).
func (r *request) mode() string {
	if _, announced := r.Trailer["Lambda-Runtime-Function-Error-Type"]; announced && r.get("Lambda-Runtime-Function-Response-Mode") == "" {
		return rapid.ModeStreaming
	}
	return r.get("Lambda-Runtime-Function-Response-Mode")
}

// stream passes the body to the stream as it arrives (RT-69). If the invocation ends first,
// stream closes the connection and returns ErrClosed (RT-73).
func (r *request) stream(to *rapid.Stream) (seen int64, tooLarge, truncated bool, err error) {
	stop := to.AfterEnd(func() { _ = connOf(r.Request).Close() }) // it may be closed already
	defer stop()
	if body, ok := r.arrival.ReadCloser.(*httpfast.Body); ok {
		body.Widen()
	}
	seen, err = to.ReadFrom(r.Body)
	select {
	case <-to.Ended():
		return seen, false, false, rapid.ErrClosed
	default:
	}
	tooLarge = errors.Is(err, rapid.ErrStreamLimit)
	return seen, tooLarge, err != nil && !tooLarge, nil
}

// trailers returns the error type and body in the trailers, which report a failure during the
// body (RT-70). Both are empty if there was none.
func trailers(t http.Header) (errorType string, body []byte) {
	text := t.Get("Lambda-Runtime-Function-Error-Body")
	if text != "" {
		var err error
		if body, err = base64.StdEncoding.DecodeString(text); err != nil {
			body = []byte(text) // not encoded as RT-70 requires: use it as it is
		}
	}
	return t.Get("Lambda-Runtime-Function-Error-Type"), body
}

// arrival is a body that records when its first byte arrived (TL-45).
type arrival struct {
	io.ReadCloser
	first time.Time
}

func (a *arrival) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if n > 0 && a.first.IsZero() {
		a.first = time.Now()
	}
	return n, err
}

// initError is POST …/runtime/init/error (1.7) or …/runtime/restore/error (RT-55).
func initError(begin func(*rapid.Client, context.Context) error) func(*request) error {
	return func(r *request) error {
		if err := begin(r.client, r.ctx()); err != nil {
			return err
		}
		limit := r.sandbox.BodyLimit(rapid.AnswerError)
		body, _, tooLarge, _ := r.body(limit) // a truncated body is still useful
		posted := rapid.InitError{Body: body, Type: r.get("Lambda-Runtime-Function-Error-Type")}
		if err := r.client.FinishInitError(r.ctx(), posted); err != nil {
			return err
		}
		if tooLarge {
			return &rapid.Refusal{Type: rapid.RequestEntityTooLarge,
				Message: "Exceeded maximum allowed payload size (" + strconv.FormatInt(limit, 10) + " bytes)."}
		}
		r.accept()
		return nil
	}
}

// restoreNext is GET …/runtime/restore/next (RT-53).
func restoreNext(r *request) error {
	if err := r.client.RestoreNext(r.ctx()); err != nil {
		return err
	}
	r.WriteHeader(http.StatusOK)
	return nil
}

// credentials is GET /2021-04-23/credentials (RT-72).
func credentials(r *request) error {
	c, err := r.client.Credentials(r.ctx(), r.get("Authorization"))
	if errors.Is(err, rapid.ErrUnknownToken) {
		r.WriteHeader(http.StatusNotFound)
		return nil
	}
	if err != nil {
		return err
	}
	r.json(http.StatusOK, struct {
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string
		Token           string
		Expiration      time.Time
	}{c.AccessKeyID, c.SecretAccessKey, c.SessionToken, time.Now().UTC().Add(credentialsLife).Truncate(time.Second)})
	return nil
}

// credentialsLife is how long an SDK may keep credentials before it requests them again. The
// sandbox does not know when the operator's credentials expire.
const credentialsLife = time.Hour
