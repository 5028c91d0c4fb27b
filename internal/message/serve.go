package message

import (
	"time"

	"github.com/sandboxd/sandboxd/function"
)

// The hosts of requests between the worker and control, over streams that root hands out.
// Whatever has another host is a client's request, which the worker passes to control as it
// is. The worker refuses requests of clients that have one of these hosts.
const (
	ControlHost = "control.internal"
	WorkerHost  = "worker.internal"
)

// The paths of these requests.
const (
	ResolvePath     = "/resolve"     // GET, with the query name and qualifier; answered with Resolved
	EnvironmentPath = "/environment" // GET, with the query revision, its number; answered with a map of variables
	VerifyPath      = "/verify"      // POST of Verify, answered with Verdict
	SwitchPath      = "/switch"      // POST of Switch to the worker; answered when it is in force
)

// Resolved is what the worker learns of a function. Root knows the revision already.
type Resolved struct {
	Revision function.Revision // without Env
	Reserved int               // most invocations at once; -1 if nothing is reserved

	Credentials bool // root has credentials of its role, which sandboxes get
}

// UnsignedHeader marks a client's request that the worker passes to control although it has
// no signature: it came over loopback, and the operator allows that (--unsigned-loopback).
// Control must not believe it otherwise. The worker removes every header from the requests of
// clients whose name begins with HeaderPrefix.
const (
	HeaderPrefix   = "Sandboxd-"
	UnsignedHeader = HeaderPrefix + "Unsigned"
)

// CodePath begins the path of URLs that control makes for clients, with a signature of its own.
// The worker passes requests for them without one of the client. It is lambda.CodePath.
const CodePath = "/code/"

// Verify asks whether a signature is that of an access key, and whether the key may do what
// the request asks for. Without StringToSign and Signature it asks whether there is such a key:
// clients may sign a body that has not been read yet.
type Verify struct {
	AccessKeyID, Date, Region, Service string // of the scope; Date is like 20261201
	StringToSign, Signature            string
	Action, ARN                        string // such as lambda:InvokeFunction
}

// Verdict is the answer to Verify.
type Verdict struct {
	Exists  bool // there is such an access key, whatever its signature is
	Known   bool // there is such an access key, and its signature is right
	Allowed bool // it may do this
	// Key is the key derived for the scope, from which the worker can verify the next
	// signatures by itself until Until. It is there only for access keys that may do nothing
	// but invoke, so that a worker that was taken over cannot sign anything else.
	Key   []byte
	Until time.Time
}

// Switch tells the worker that a function has changed: requests that arrive after the answer
// run in no revision lower than Number. Gone says that there is no function of that name
// any more.
type Switch struct {
	Name   string
	Number uint64
	Gone   bool
}

// Fault is the answer to a request that failed: a refusal of the Lambda API.
type Fault struct {
	Status  int    // of HTTP
	Type    string // such as ResourceNotFoundException
	Message string
}

// Error returns the type and the message.
func (f *Fault) Error() string { return f.Type + ": " + f.Message }
