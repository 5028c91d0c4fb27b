package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

const identifier = "Lambda-Extension-Identifier"

// register is POST …/extension/register (section 2.2).
func register(r *request) error {
	reg := rapid.Registration{Name: r.get("Lambda-Extension-Name")}
	if reg.Name != "" { // rapid refuses an empty name, before anything else is checked (EX-12)
		var body struct {
			Events            []string          `json:"events"`
			ConfigurationKeys []json.RawMessage `json:"configurationKeys"`
		}
		b, truncated, err := r.small()
		if err != nil {
			return err
		}
		if truncated || json.Unmarshal(b, &body) != nil || len(body.ConfigurationKeys) > 0 {
			return &rapid.Refusal{Type: rapid.InvalidRequestFormat, Message: "Invalid request format"}
		}
		reg.Events = body.Events
	}
	features := strings.Split(r.get("Lambda-Extension-Accept-Feature"), ",")
	reg.AccountID = slices.ContainsFunc(features, func(f string) bool { return strings.TrimSpace(f) == "accountId" })
	done, err := r.client.Register(r.ctx(), reg)
	if err != nil {
		return err
	}
	r.Header().Set(identifier, done.ID)
	r.json(http.StatusOK, struct {
		FunctionName    string `json:"functionName"`
		FunctionVersion string `json:"functionVersion"`
		Handler         string `json:"handler"`
		AccountID       string `json:"accountId,omitempty"`
	}{done.FunctionName, done.FunctionVersion, done.Handler, done.AccountID})
	return nil
}

// nextEvent is GET …/extension/event/next (EX-18 to EX-20).
func nextEvent(r *request) error {
	id := r.get(identifier)
	e, err := r.client.NextEvent(r.ctx(), id)
	if err != nil {
		return err
	}
	body, err := json.Marshal(eventBody(e))
	if err != nil {
		return err
	}
	h := r.Header()
	h.Set("Lambda-Extension-Event-Identifier", uuid.NewString())
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	r.deliver(id, e, body)
	return nil
}

// small reads the body of an extension's request. It limits concurrent reads of bodies above
// maxSmall, because the sender is not known to be an extension yet.
func (r *request) small() (b []byte, truncated bool, err error) {
	limit := r.sandbox.Rules().ExtensionBody
	if n := r.ContentLength; limit > maxSmall && (n < 0 || n > maxSmall) {
		places := connOf(r.Request).guard.large
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		case <-r.ctx().Done():
			return nil, false, r.ctx().Err()
		}
	}
	b, _, tooLarge, truncated := r.body(limit)
	if tooLarge {
		return nil, false, &rapid.Refusal{Type: rapid.RequestEntityTooLarge,
			Message: "Exceeded maximum allowed payload size (" + strconv.FormatInt(limit, 10) + " bytes)."}
	}
	return b, truncated, nil
}

type tracing struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

func eventBody(e *rapid.Event) any {
	deadline := e.Deadline.UnixMilli()
	if e.Type == rapid.EventShutdown {
		return struct {
			Type     string `json:"eventType"`
			Reason   string `json:"shutdownReason"`
			Deadline int64  `json:"deadlineMs"`
		}{e.Type, e.Reason, deadline}
	}
	var t *tracing
	if v := e.Invocation.TraceID; v != "" {
		t = &tracing{"X-Amzn-Trace-Id", v}
	}
	return struct {
		Type      string   `json:"eventType"`
		Deadline  int64    `json:"deadlineMs"`
		RequestID string   `json:"requestId"`
		ARN       string   `json:"invokedFunctionArn"`
		Tracing   *tracing `json:"tracing,omitempty"`
	}{e.Type, deadline, e.Invocation.ID, e.Invocation.FunctionARN, t}
}

// failAgent is POST …/extension/init/error and …/exit/error; the body is ignored (EX-22).
func failAgent(atInit bool) func(*request) error {
	return func(r *request) error {
		f := rapid.AgentFailure{Init: atInit, Type: r.get("Lambda-Extension-Function-Error-Type")}
		if err := r.client.FailAgent(r.ctx(), r.get(identifier), f); err != nil {
			return err
		}
		r.accept()
		return nil
	}
}

// subscribe is PUT of the Telemetry and Logs APIs (section 3.1).
func subscribe(api telemetry.API) func(*request) error {
	return func(r *request) error {
		body, truncated, err := r.small()
		switch {
		case err != nil:
			return err
		case truncated:
			return &rapid.Refusal{Type: rapid.TruncatedHTTPRequest, Message: "HTTP request detected as truncated"}
		}
		if err := r.client.Subscribe(r.ctx(), r.get(identifier), api, body); err != nil {
			return err
		}
		r.send(http.StatusOK, "application/json", []byte(`"OK"`)) // TL-08
		return nil
	}
}
