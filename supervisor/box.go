package supervisor

import (
	"context"
	"net"
	"os"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// Box is what a Sandbox needs of the kernel: the namespaces and cgroups of one
// sandbox. *runc.Sandbox of package isolation/runc is one, and *privsep.Box stands for
// one in another process. All methods may be called from several goroutines; Kill,
// MemoryPeak, Usage, GivePipes, Listener, Domain and Dial at any time, the others never
// two at once for one domain.
type Box interface {
	// Start makes a domain. When it returns, the domain's PID 1 has sent its handshake, which
	// Start has received, and the mounts are attached. The connection is the caller's.
	Start(ctx context.Context, domain string) (*wire.Conn, error)

	// GivePipes makes the sandbox user the owner of pipes, so that processes can open
	// them anew, as /dev/stderr.
	GivePipes(context.Context, ...*os.File) error

	// Freeze returns when every process of the sandbox has stopped. Thaw undoes it.
	// Both do nothing if that is so already.
	Freeze(context.Context) error
	Thaw(context.Context) error

	// SetThrottled turns the CPU quota on or off. A new box is not throttled.
	SetThrottled(context.Context, bool) error

	// Kill sends SIGKILL to every process of the sandbox, PID 1s included, frozen
	// or not. It does not wait for their end.
	Kill(context.Context) error

	// MemoryPeak is MemoryPeakBytes of Usage, for less: each invocation asks for it.
	MemoryPeak() (uint64, error)

	// Usage returns what the sandbox has used so far.
	Usage() (isolation.Usage, error)

	// Listener returns the socket of the Runtime API, bound inside the sandbox's
	// network namespace. The box owns it and closes it in Close.
	Listener() net.Listener

	// Domain says which domain the process belongs to that made conn, an accepted
	// connection of Listener. A process can hand a connection to another one; it is
	// its maker that counts. The error says why it cannot be told: the maker has hung
	// up already, or is no process of the sandbox.
	Domain(ctx context.Context, conn net.Conn) (string, error)

	// Dial connects to a TCP address from inside the sandbox's network namespace.
	Dial(ctx context.Context, network, addr string) (net.Conn, error)

	// Close kills what runs, waits for its end, and removes everything that belongs
	// to the sandbox. After an error the remains are quarantined: they keep the
	// sandbox's name until a later reconciliation removes them.
	Close(context.Context) error
}
