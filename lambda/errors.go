package lambda

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/sandboxd/sandboxd/state"
)

// Error is a refusal of the API, as clients see it.
type Error struct {
	Status     int    // of HTTP
	Type       string // such as ResourceNotFoundException
	Message    string
	Reason     string // of TooManyRequestsException
	RetryAfter int    // seconds; 0 leaves the header out

	wordless bool  // the message is null, as AWS's is where it tells nothing
	cause    error // for the operator, not for the client
}

// Error returns the name of the error and its message.
func (e *Error) Error() string { return e.Type + ": " + e.Message }

// Unwrap returns the cause of a ServiceException, which the client does not get.
func (e *Error) Unwrap() error { return e.cause }

// refuse returns an error of the model's type. The status is that of the model.
func refuse(name, format string, args ...any) *Error {
	e := &Error{Status: http.StatusBadRequest, Type: name, Message: fmt.Sprintf(format, args...)}
	if s := api().shape(name); s != nil && s.Exception {
		e.Status = s.Status
	}
	return e
}

func badParameter(format string, args ...any) *Error {
	return refuse("InvalidParameterValueException", format, args...)
}

func conflict(format string, args ...any) *Error {
	return refuse("ResourceConflictException", format, args...)
}

func notFound(arn string) *Error {
	return refuse("ResourceNotFoundException", "Function not found: %s", arn)
}

func tooLarge(format string, args ...any) *Error {
	e := refuse("RequestEntityTooLargeException", format, args...)
	e.Status = http.StatusRequestEntityTooLarge
	return e
}

func malformed(format string, args ...any) *Error {
	return refuse("SerializationException", format, args...)
}

// accessDenied is what AWS answers for the functions of other accounts: not a word.
func accessDenied() *Error {
	return &Error{Status: http.StatusForbidden, Type: "AccessDeniedException", wordless: true}
}

// failed wraps an error of ours, which is no fault of the client.
func failed(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	e := &Error{Status: http.StatusInternalServerError, Type: "ServiceException",
		Message: "An internal error occurred. The log of sandboxd has the cause under this request id.", cause: err}
	switch {
	case errors.Is(err, state.ErrReadOnly), errors.Is(err, state.ErrNoSpace):
		e.Status, e.RetryAfter, e.Message = http.StatusServiceUnavailable, 10, "No change can be stored: "+err.Error()
	case errors.Is(err, state.ErrDamaged), errors.Is(err, state.ErrUnknown):
		e.Message = err.Error()
	}
	return e
}

// write sends the error in the form that clients parse: the type in a header, and the text in
// a member that is called message or Message, as the model has it for each type.
func (e *Error) write(w http.ResponseWriter) {
	body := map[string]any{}
	text := "message"
	if s := api().shape(e.Type); s != nil && s.Exception {
		body["Type"] = "User"
		if e.Status >= http.StatusInternalServerError {
			body["Type"] = "Service"
		}
		if s.member("Message") != nil {
			text = "Message"
		}
	}
	body[text] = e.Message
	if e.wordless {
		body["Message"], body["message"] = nil, nil
	}
	if e.Reason != "" {
		body["Reason"] = e.Reason
	}
	h := w.Header()
	h.Set("X-Amzn-Errortype", e.Type)
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(e.RetryAfter))
	}
	writeJSON(w, e.Status, body)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(body) // an error means that the client is gone
}
