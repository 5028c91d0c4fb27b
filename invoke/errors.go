package invoke

import (
	"encoding/json"
	"net/http"
	"strings"
)

// A refusal is an error response of the service (section 5.2), not of the function.
type refusal struct {
	status int
	name   string // name of the exception
	text   string
	reason string // INV-26; TooManyRequestsException only
	allow  string // header Allow
	hangUp bool   // close the connection instead of reading the rest of the request
}

var (
	errRequestID = badContent("The proposed x-amzn-RequestId is not a UUID.")

	errNoEvents = badParameter("Asynchronous invocations are not supported yet: X-Amz-Invocation-Type must be RequestResponse or DryRun.")
	// The reason is that of a function's reserved concurrency on Lambda.
	errTooMany = &refusal{status: http.StatusTooManyRequests, name: "TooManyRequestsException",
		text: "Rate Exceeded.", reason: "ReservedFunctionConcurrentInvocationLimitExceeded"}
	// The reason is that of the concurrency of all functions together.
	errAllBusy = &refusal{status: http.StatusTooManyRequests, name: "TooManyRequestsException",
		text: "Rate Exceeded.", reason: "ConcurrentInvocationLimitExceeded"}
	// The server's memory for request bodies is used up.
	errBuffers = &refusal{status: http.StatusTooManyRequests, name: "TooManyRequestsException",
		text: "Rate Exceeded.", reason: "CallerRateLimitExceeded", hangUp: true}
	errService = &refusal{status: http.StatusInternalServerError, name: "ServiceException",
		text: "An internal error occurred. The log of sandboxd has the cause under this request id."}
	errShutdown = &refusal{status: http.StatusInternalServerError, name: "ServiceException",
		text: "sandboxd is shutting down."}
	// Managed mode only (RT-65, FE-19).
	errUnavailable = &refusal{status: http.StatusBadRequest, name: "Runtime.Unavailable",
		text: "No worker of the function's runtime asks for an event."}
	errDuplicate = &refusal{status: http.StatusBadRequest, name: "Client.DuplicatedInvokeId",
		text: "An invocation with this request id runs already."}
	errUnknownPath = &refusal{status: http.StatusNotFound, name: "UnknownOperationException",
		text: "No operation of the Lambda API that sandboxd serves has this path. Invoke is POST /2015-03-31/functions/{name}/invocations, InvokeWithResponseStream is POST /2021-11-15/functions/{name}/response-streaming-invocations."}
	errMethod = &refusal{status: http.StatusMethodNotAllowed, name: "MethodNotAllowedException",
		text: "This operation takes POST only.", allow: http.MethodPost}
)

// Error implements error.
func (e *refusal) Error() string { return e.text }

// Fault is an error response of the Lambda API that [Functions] or [Config.Authorize] have
// chosen. The caller gets it as it is.
type Fault struct {
	Status  int    // of HTTP
	Type    string // such as ResourceNotFoundException
	Message string
}

// Error implements error.
func (f *Fault) Error() string { return f.Type + ": " + f.Message }

// Write writes the response, in the form of those of a [Server].
func (f *Fault) Write(w http.ResponseWriter) {
	if w.Header().Get("X-Amzn-Requestid") == "" {
		w.Header().Set("X-Amzn-Requestid", newIDs().request)
	}
	f.refusal().write(w)
}

func (f *Fault) refusal() *refusal {
	return &refusal{status: f.Status, name: f.Type, text: f.Message}
}

func badContent(text string) *refusal {
	return &refusal{status: http.StatusBadRequest, name: "InvalidRequestContentException", text: text}
}

func badParameter(text string) *refusal {
	return &refusal{status: http.StatusBadRequest, name: "InvalidParameterValueException", text: text}
}

// notFound returns the refusal of INV-19. An ARN without a qualifier gets that of the version
// that would have run.
func notFound(arn string) *refusal {
	if strings.Count(arn, ":") == colonsOfARN {
		arn += ":$LATEST"
	}
	return &refusal{status: http.StatusNotFound, name: "ResourceNotFoundException", text: "Function not found: " + arn}
}

// colonsOfARN is the number of colons in a function's ARN without a qualifier.
const colonsOfARN = 6

// write sends the refusal in the form of INV-16.
func (e *refusal) write(w http.ResponseWriter) {
	body := struct {
		Reason  string `json:"Reason,omitempty"`
		Type    string `json:"Type"`
		Lower   string `json:"message,omitempty"`
		Capital string `json:"Message,omitempty"`
	}{Reason: e.reason, Type: "User"}
	if e.status >= http.StatusInternalServerError {
		body.Type = "Service"
	}
	switch e.name { // clients depend on the case of the member's name
	case "InvalidParameterValueException", "InvalidRequestContentException", "RequestTooLargeException",
		"UnsupportedMediaTypeException", "TooManyRequestsException", "ValidationException",
		"MissingAuthenticationTokenException", "IncompleteSignatureException", "InvalidSignatureException",
		"UnrecognizedClientException":
		body.Lower = e.text
	default:
		body.Capital = e.text
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Amzn-Errortype", e.name)
	if e.status == http.StatusTooManyRequests || e.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1") // seconds (INV-23)
	}
	if e.allow != "" {
		h.Set("Allow", e.allow)
	}
	if e.hangUp {
		h.Set("Connection", "close")
	}
	w.WriteHeader(e.status)
	b, err := json.Marshal(body)
	if err == nil { // strings always marshal
		_, _ = w.Write(b)
	}
}
