// Package privsep separates privileges between two processes: the supervisor, which is root
// and creates sandboxes, and the worker, which is unprivileged and handles untrusted input.
// The worker sends requests with a [Client]; the supervisor decides about them in a
// [Server]. [Pair] creates the connection between the two.
//
// The connection is one SOCK_SEQPACKET socket pair that no other process holds. A request
// has 40 bytes: numbers, and an IP address for one operation. It has no text, no lengths and
// no offsets, so the supervisor parses nothing. What the format cannot express, a worker
// cannot request: it names no path, no user id, no limit and no command. It requests "a
// sandbox of revision N" and gets what the supervisor has registered for that revision. The
// worker keeps what every invocation needs as open files: the listener of the Runtime API,
// the files to freeze and to measure, and the sockets of the init handlers. So an
// invocation sends no request.
//
// If the worker violates the protocol, [Server.Serve] returns an error and removes all
// sandboxes, and the supervisor kills the worker.
//
// client.go and box.go are the worker's half, server.go and server_box.go the supervisor's.
// A Client and a [Box] are safe for concurrent use; a Server handles requests concurrently.
package privsep
