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

// RefusalType is the errorType in the response to a refused call (RT-06).
type RefusalType string

// The error types of the Runtime, Extensions and Telemetry APIs (FE-22, FE-23).
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
	NotTheRuntime               RefusalType = "Runtime.Forbidden" // strict mode; not a type of AWS
	ValidationError             RefusalType = "ValidationError"   // Telemetry API
	LogsValidationError         RefusalType = "Logs.ValidationError"
)

// Refusal is the error of a call that was not allowed. A refused call changes nothing, except
// where RT-34 to RT-36 say so.
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
	errOutOfMemory       = "Runtime.OutOfMemory" // INV-14
	errRuntimeUnknown    = "Runtime.Unknown"
	errBadResponseMode   = "Runtime.InvalidResponseModeHeader"
	errTruncated         = "Runtime.TruncatedResponse"
	errResponseTooLarge  = "Function.ResponseSizeTooLarge"
	errRestoreTimeout    = "Runtime.RestoreHookUserTimeout"
	errRestoreRenewal    = "errRestoreUpdateCredentials"
)

// Fault is a fatal error of the execution environment. Its type is set where the fault is
// detected. The message may be set later, from the exit that the fault causes.
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

// latestFault is like fatal, after an exit.
func (s *Sandbox) latestFault() *Fault {
	s.noteExit()
	return s.fatal()
}

// reportFault writes the line of LOG-29; requestID is "" outside an invocation.
func (s *Sandbox) reportFault(requestID string, f *Fault) {
	s.log.Platform(&telemetry.Fault{RequestID: requestID, Message: f.Message, ErrorType: f.Type})
}

// exitFault returns the fault for the exit of a process, in the words of LC-45.
func (s *Sandbox) exitFault(p *process) *Fault {
	e := p.handle.Exit()
	switch {
	case s.sup.OutOfMemory():
		return s.memoryFault(p)
	case p.agent != nil && e.Signal == 0 && e.Code == 0:
		return &Fault{errExtensionCrash, "extension " + p.agent.Name + ": exit code 0"}
	case p.agent != nil:
		return &Fault{errExtensionCrash, "extension " + p.agent.Name + ": " + e.String()}
	case e.Signal == 0 && e.Code == 0:
		return &Fault{errRuntimeExit, "Runtime exited without providing a reason"}
	}
	return &Fault{errRuntimeExit, "Runtime exited with error: " + e.String()}
}

// memoryRanOut reports whether the kernel has killed a process for lack of memory by now, even
// if no exit was reported yet. The exits of all processes follow then.
func (s *Sandbox) memoryRanOut() bool {
	_, _ = s.sup.Usage() // if it fails, what was known before counts
	return s.sup.OutOfMemory()
}

// memoryFault returns the fault of a sandbox that has run out of memory (INV-14). It counts as
// the exit of the runtime, because it ends the whole sandbox, whichever process was killed
// (docs/decisions/0037). p is the process that exited, or nil if none is known. A runtime may
// exit by itself after the kernel has killed its child; the message has its status then.
func (s *Sandbox) memoryFault(p *process) *Fault {
	how := "signal: killed"
	if p != nil && p.agent == nil && p.handle.Exit().Code != 0 {
		how = p.handle.Exit().String()
	}
	return &Fault{errOutOfMemory, fmt.Sprintf("Runtime exited with error: %s: out of memory, the limit is %d MB", how, s.cfg.Function.MemoryMB)}
}

// bootstrapFault returns the fault for a runtime that could not be started (LC-12), or nil if
// the function did not cause err.
func bootstrapFault(path string, err error) *Fault {
	var x *supervisor.ExecError
	switch {
	case !errors.As(err, &x):
		return nil
	case x.BadDir:
		return &Fault{errInvalidWorkingDir, fmt.Sprintf("chdir %s: %v", x.Dir, x.Errno)}
	}
	return &Fault{errInvalidEntrypoint, launchErrorText(path, err)}
}

// launchErrorType returns the error type of an extension that could not be started (EX-03).
func launchErrorType(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "PermissionDenied"
	}
	return "UnknownError"
}

// launchErrorText says why a program could not be started, in the words of Lambda if the program
// is the cause.
func launchErrorText(path string, err error) string {
	if x, ok := errors.AsType[*supervisor.ExecError](err); ok && !x.BadDir {
		return fmt.Sprintf("fork/exec %s: %v", path, x.Errno)
	}
	return fmt.Sprintf("%s: %v", path, err)
}

// failure returns an error result with a text of the platform.
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

// faultResult returns the default result of LC-45.
func faultResult(id string, f *Fault) *Result {
	m := "Error: " + f.Message
	if id != "" {
		m = "RequestId: " + id + " " + m
	}
	r := failure(f.Type, m)
	r.fault = f
	return r
}

const causeContentType = "application/vnd.aws.lambda.error.cause+json"

// errorResult returns the result for an error that a runtime posted to …/error (RT-38 to
// RT-42).
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

// trailerResult returns the result for a runtime that failed while it sent the body (RT-70).
// It drops the part that was sent before: the caller does not stream and waits for all of it.
func trailerResult(a *Answer) *Result {
	r := &Result{Payload: a.TrailerBody, ContentType: "application/json", FunctionError: true}
	if len(r.Payload) == 0 {
		r = failure(a.TrailerType, "")
	}
	r.ErrorType, r.Code = sanitizeType(a.TrailerType), a.TrailerType
	return r
}
