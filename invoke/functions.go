package invoke

import (
	"context"
	"errors"

	"github.com/sandboxd/sandboxd/rapid"
)

// Functions are what the endpoint serves. Its methods are called from many goroutines.
type Functions interface {
	// Find returns what a request must know of the function of that name before an invocation
	// of it is accepted; false if there is none. It is called for each request, and returns at
	// once.
	Find(name string) (Function, bool)

	// Lease reserves the right to one invocation of the function for a tenant, "" without
	// tenant isolation. It may wait, as long as ctx at most. The error is ErrNoFunction,
	// ErrTooMany, ErrClosed, that of ctx, or a fault of the platform.
	Lease(ctx context.Context, name, tenant string) (Lease, error)
}

// Function is what a request must know of a function.
type Function struct {
	ARN     string // unqualified
	Version string // the one that is served, besides $LATEST (INV-06)
	Tenants bool   // every request names its tenant, and no sandbox serves two (INV-05)
}

// Lease is the right to run one invocation. Its holder must call Invoke, once.
type Lease interface {
	// Invoke runs the invocation and returns when its answer is complete, or has begun if it is
	// a stream, which must then be read to its end. Failures of the function are Results. The
	// error is ErrClosed, rapid.ErrUnavailable, rapid.ErrDuplicate, or a fault of the platform
	// (INV-24).
	Invoke(*rapid.Invocation) (*rapid.Result, error)
	// Version is the version that runs, or has run, the invocation.
	Version() string
}

// Errors of Functions and Lease.
var (
	ErrNoFunction = errors.New("there is no such function")                // any more
	ErrTooMany    = errors.New("the function's concurrency is reached")    // INV-23
	ErrClosed     = errors.New("the daemon ends, and runs no invocations") // it may have begun this one
)
