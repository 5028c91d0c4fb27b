package rapid

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

// RefusalType is the errorType of an answer that refuses a call (RT-06).
type RefusalType string

// The types that the Runtime and Extensions APIs answer with (FE-22, FE-23).
const (
	InvalidRequestID            RefusalType = "InvalidRequestID"
	InvalidStateTransition      RefusalType = "InvalidStateTransition"
	InvalidFunctionResponseMode RefusalType = "InvalidFunctionResponseMode"
	RequestEntityTooLarge       RefusalType = "RequestEntityTooLarge"
	TruncatedHTTPRequest        RefusalType = "TruncatedHTTPRequest"
	InvokeTimeout               RefusalType = "InvokeTimeout"
	InvalidRequestFormat        RefusalType = "InvalidRequestFormat"
	InvalidExtensionName        RefusalType = "Extension.InvalidExtensionName"
	InvalidEventType            RefusalType = "Extension.InvalidEventType"
	InvalidExtensionState       RefusalType = "Extension.InvalidExtensionState"
	RegistrationClosed          RefusalType = "Extension.RegistrationClosed"
	TooManyExtensions           RefusalType = "Extension.TooManyExtensions"
	MissingExtensionIdentifier  RefusalType = "Extension.MissingExtensionIdentifier"
	InvalidExtensionIdentifier  RefusalType = "Extension.InvalidExtensionIdentifier"
	UnknownExtensionIdentifier  RefusalType = "Extension.UnknownExtensionIdentifier"
	MissingHeader               RefusalType = "Extension.MissingHeader"
	NotTheRuntime               RefusalType = "Runtime.Forbidden" // ours, of strict mode
	ValidationError             RefusalType = "ValidationError"   // of the Telemetry API
	LogsValidationError         RefusalType = "Logs.ValidationError"
)

// Refusal says why a call of a process was not legal. A refused call changes nothing,
// except where RT-34 to RT-36 say so.
type Refusal struct {
	Type    RefusalType
	Message string
}

func (r *Refusal) Error() string { return string(r.Type) + ": " + r.Message }

// Fatal error types (section 8).
const (
	errRuntimeExit       = "Runtime.ExitError"
	errInvalidEntrypoint = "Runtime.InvalidEntrypoint"
	errInvalidWorkingDir = "Runtime.InvalidWorkingDir"
	errExtensionLaunch   = "Extension.LaunchError"
	errExtensionInit     = "Extension.InitError"
	errExtensionExit     = "Extension.ExitError"
	errExtensionCrash    = "Extension.Crash"
	errSandboxFailure    = "Sandbox.Failure"
	errSandboxTimedout   = "Sandbox.Timedout" // before the answer began
	errSandboxTimeout    = "Sandbox.Timeout"  // while it streamed (RT-73)
	errManagedInit       = "Runtime.InitError"
	errOutOfMemory       = "Runtime.OutOfMemory" // of managed mode (INV-14)
	errRestoreTimeout    = "Runtime.RestoreHookUserTimeout"
	errRestoreRenewal    = "errRestoreUpdateCredentials"
)

// Fault is a fatal error of the environment. Its type is chosen where the fault is
// seen. The message may come later, with the exit that the fault leads to.
type Fault struct{ Type, Message string }

// note stores f as the fatal error if it is the first (LC-49, FE-31).
func (s *Sandbox) note(f *Fault) {
	if s.fault == nil {
		s.fault = f
	} else if s.fault.Message == "" {
		s.fault = &Fault{s.fault.Type, f.Message}
	}
}

// fatal returns the stored fault, or the default of LC-45.
func (s *Sandbox) fatal() *Fault {
	f := Fault{Type: errSandboxFailure}
	if s.fault != nil {
		f = *s.fault
	}
	if f.Message == "" {
		f.Message = "Runtime exited without providing a reason"
	}
	return &f
}

// reportFault writes the line of LOG-29; requestID is "" outside an invocation.
func (s *Sandbox) reportFault(requestID string) {
	s.noteExit()
	f := s.fatal()
	s.log.Platform(&telemetry.Fault{RequestID: requestID, Message: f.Message, ErrorType: f.Type})
}

// exitFault words the end of a process as LC-45 does. A process that the kernel
// killed for the memory limit takes the runtime with it (INV-14, SUP-17).
func exitFault(p *process) *Fault {
	e := p.handle.Exit()
	switch {
	case e.OOMKilled:
		return &Fault{errRuntimeExit, "Runtime exited with error: signal: killed"}
	case p.agent != nil && e.Signal == 0 && e.Code == 0:
		return &Fault{errExtensionCrash, "exit code 0"}
	case p.agent != nil:
		return &Fault{errExtensionCrash, e.String()}
	case e.Signal == 0 && e.Code == 0:
		return &Fault{errRuntimeExit, "Runtime exited without providing a reason"}
	}
	return &Fault{errRuntimeExit, "Runtime exited with error: " + e.String()}
}

// bootstrapFault says why the runtime could not be started (LC-12), nil if it is
// not the function that is to blame.
func bootstrapFault(path string, err error) *Fault {
	var x *supervisor.ExecError
	switch {
	case !errors.As(err, &x):
		return nil
	case x.BadDir:
		return &Fault{errInvalidWorkingDir, fmt.Sprintf("chdir %s: %v", x.Dir, x.Errno)}
	}
	return &Fault{errInvalidEntrypoint, fmt.Sprintf("fork/exec %s: %v", path, x.Errno)}
}

// launchErrorType is the detail of an agent's state LaunchError (EX-03).
func launchErrorType(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "PermissionDenied"
	}
	return "UnknownError"
}

// failure is an answer that the platform words itself.
func failure(errorType, message string) *Result {
	body, err := json.Marshal(struct {
		Type    string `json:"errorType"`
		Message string `json:"errorMessage"`
	}{errorType, message})
	if err != nil { // two strings cannot fail
		body = []byte(`{}`)
	}
	return &Result{Payload: body, ContentType: "application/json", FunctionError: true, ErrorType: errorType}
}

// faultResult is the default answer of LC-45.
func faultResult(id string, f *Fault) *Result {
	m := "Error: " + f.Message
	if id != "" {
		m = "RequestId: " + id + " " + m
	}
	return failure(f.Type, m)
}

const causeContentType = "application/vnd.aws.lambda.error.cause+json"

// errorResult is the answer that a runtime posted to …/error (RT-38 to RT-42).
func errorResult(a *Answer) *Result {
	r := &Result{Payload: a.Payload, ContentType: a.ContentType, FunctionError: true,
		ErrorType: sanitizeType(a.ErrorType), Code: "Unhandled", Cause: sanitizeCause(a.Cause)}
	mediaType, _, _ := strings.Cut(a.ContentType, ";")
	if !strings.EqualFold(strings.TrimSpace(mediaType), causeContentType) {
		return r
	}
	var body struct { // RT-40
		Message string          `json:"errorMessage"`
		Type    string          `json:"errorType"`
		Trace   json.RawMessage `json:"stackTrace,omitempty"`
		Cause   json.RawMessage `json:"errorCause,omitempty"`
	}
	if err := json.Unmarshal(a.Payload, &body); err != nil {
		r.Payload, r.ContentType = []byte(`"Invalid error body"`), "application/octet-stream"
		return r
	}
	r.Cause = sanitizeCause(body.Cause)
	body.Cause = nil
	if p, err := json.Marshal(body); err == nil { // strings, and parts of valid JSON: it cannot fail
		r.Payload, r.ContentType = p, "application/json"
	}
	return r
}

// trailerResult is the answer of a runtime that failed while it sent a body (RT-70).
// What it had sent before is dropped: the caller waits for the whole.
func trailerResult(a *Answer) *Result {
	r := &Result{Payload: a.TrailerBody, ContentType: "application/json", FunctionError: true}
	if len(r.Payload) == 0 {
		r = failure(a.TrailerType, "")
	}
	r.ErrorType, r.Code = sanitizeType(a.TrailerType), a.TrailerType
	return r
}
