package supervisor

import (
	"context"
	"net"
	"os"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// Box is the interface to the kernel objects of one sandbox, its namespaces and cgroups.
// *runc.Sandbox of package isolation/runc implements it directly; *privsep.Box implements
// it with requests to another process. Kill, MemoryPeak, MemoryUsed, Usage, GivePipes, Listener,
// Domain and Dial may be called at any time and from several goroutines at once. Of the other
// methods a Sandbox calls only one at a time for each domain.
type Box interface {
	// Start creates a domain. When it returns, it has received the handshake of the domain's
	// PID 1, and the mounts are attached. The caller must close the connection.
	Start(ctx context.Context, domain string) (*wire.Conn, error)

	// GivePipes makes the sandbox user the owner of pipes, so that processes can open them
	// again as /dev/stderr.
	GivePipes(context.Context, ...*os.File) error

	// Freeze stops every process of the sandbox and returns when all have stopped. Thaw
	// undoes it. On a sandbox that is already in that state they have no effect.
	Freeze(context.Context) error
	Thaw(context.Context) error

	// SetThrottled turns the CPU quota on or off. A new box is not throttled.
	SetThrottled(context.Context, bool) error

	// Kill sends SIGKILL to every process of the sandbox, including each PID 1 and frozen
	// processes. It does not wait until they have exited.
	Kill(context.Context) error

	// MemoryPeak returns the MemoryPeakBytes of Usage.
	MemoryPeak() (uint64, error)

	// MemoryUsed returns the most memory in bytes that the sandbox's processes had, without
	// page cache (docs/decisions/0044). Calls while processes work make it more exact. It is
	// cheaper than Usage, because every invocation needs it.
	MemoryUsed() (uint64, error)

	// Usage returns what the sandbox has used so far.
	Usage() (isolation.Usage, error)

	// Listener returns the socket of the Runtime API, bound inside the sandbox's
	// network namespace. The box owns it and closes it in Close.
	Listener() net.Listener

	// Domain returns the domain of the process that created conn, a connection accepted by
	// Listener. A process can pass a connection to another one; only its creator counts.
	// Domain fails if the creator has closed the connection, or is not a process of the
	// sandbox.
	Domain(ctx context.Context, conn net.Conn) (string, error)

	// Dial connects to a TCP address from inside the sandbox's network namespace.
	Dial(ctx context.Context, network, addr string) (net.Conn, error)

	// Close kills all processes, waits until they have exited, and removes everything that
	// belongs to the sandbox. After an error the remains are quarantined: they keep the
	// sandbox's id until a later attempt removes them.
	Close(context.Context) error
}
