package invoke

import (
	"context"
	"errors"

	"github.com/sandboxd/sandboxd/rapid"
)

// Functions are the functions that the endpoint serves. Implementations must be safe for
// concurrent use.
type Functions interface {
	// Find returns the properties of the function with that name that are needed to check a
	// request. qualifier is a version or an alias, or "". Find is called for each request, and
	// must be fast for functions that have been found before; for others it may wait until ctx
	// ends. The error is ErrNoFunction, a *Fault, that of ctx, or a fault of the platform.
	Find(ctx context.Context, name, qualifier string) (Function, error)

	// Lease reserves the right to one invocation of the function for a tenant, which is ""
	// without tenant isolation. It may wait until ctx ends. The error is one that Find returns,
	// or ErrTooMany, ErrAllBusy or ErrClosed.
	Lease(ctx context.Context, name, qualifier, tenant string) (Lease, error)
}

// Function has the properties of a function that are needed to check a request.
type Function struct {
	ARN     string // unqualified
	Version string // served version
	Tenants bool   // tenant isolation: every request must name its tenant (INV-05)
}

// Lease is the right to run one invocation. The holder must call Invoke, once.
type Lease interface {
	// Invoke runs the invocation and returns when its answer is complete, or has begun if it is
	// streamed; the caller must read a stream to its end. Failures of the function are Results.
	// The error is ErrClosed, rapid.ErrUnavailable, rapid.ErrDuplicate, one that Lease of
	// Functions returns, or a fault of the platform (INV-24).
	Invoke(*rapid.Invocation) (*rapid.Result, error)
	// Version returns the version that runs the invocation. It is valid after Invoke.
	Version() string
}

// Errors of Functions and Lease.
var (
	ErrNoFunction = errors.New("the function does not exist")           // or was removed meanwhile
	ErrTooMany    = errors.New("the function's concurrency is reached") // INV-23
	ErrAllBusy    = errors.New("the concurrency of all functions is reached")
	ErrClosed     = errors.New("the daemon is shutting down") // and may have begun the invocation
)
