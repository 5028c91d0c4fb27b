package api

import (
	"encoding/base64"
	"net/http"
	"strconv"

	"github.com/sandboxd/sandboxd/rapid"
)

// next is GET …/runtime/invocation/next (section 1.3).
func next(r *request) error {
	e, err := r.client.Next(r.ctx())
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
	set("Content-Type", inv.ContentType)
	if inv.ContentType == "" {
		set("Content-Type", "application/json") // RT-20
	}
	r.deliver("", e, inv.Payload)
	return nil
}

// deliver writes an event; one that does not get through is delivered again (RT-25).
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
		err := r.client.BeginAnswer(r.ctx(), id, rapid.AnswerHead{
			Kind:  kind,
			Nonce: r.get("Lambda-Runtime-Invocation-Id"),
			Mode:  r.get("Lambda-Runtime-Function-Response-Mode"),
		})
		if err != nil {
			return err
		}
		a := rapid.Answer{Kind: kind, ContentType: r.get("Content-Type")}
		a.Payload, a.Seen, a.TooLarge, a.Truncated = r.body(rapid.MaxPayload)
		if kind == rapid.AnswerError {
			a.ErrorType = r.get("Lambda-Runtime-Function-Error-Type")
			a.Cause = []byte(r.get("Lambda-Runtime-Function-Xray-Error-Cause"))
		}
		a.TrailerType = r.Trailer.Get("Lambda-Runtime-Function-Error-Type") // RT-70
		if body := r.Trailer.Get("Lambda-Runtime-Function-Error-Body"); body != "" {
			if a.TrailerBody, err = base64.StdEncoding.DecodeString(body); err != nil {
				a.TrailerBody = []byte(body) // better than nothing
			}
		}
		if err := r.client.FinishAnswer(r.ctx(), id, a); err != nil {
			return err
		}
		r.accept()
		return nil
	}
}

// initError is POST …/runtime/init/error (1.7).
func initError(r *request) error {
	if err := r.client.BeginInitError(r.ctx()); err != nil {
		return err
	}
	body, _, tooLarge, _ := r.body(rapid.MaxPayload)
	posted := rapid.InitError{Body: body, Type: r.get("Lambda-Runtime-Function-Error-Type")}
	if err := r.client.FinishInitError(r.ctx(), posted); err != nil {
		return err
	}
	if tooLarge {
		return &rapid.Refusal{Type: rapid.RequestEntityTooLarge,
			Message: "Exceeded maximum allowed payload size (" + strconv.Itoa(rapid.MaxPayload) + " bytes)."}
	}
	r.accept()
	return nil
}
