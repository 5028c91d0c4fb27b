// Package privsep is the line between two processes: the supervisor, which is root and
// makes sandboxes, and the worker, which has no privilege and reads what strangers say.
// The worker holds a [Client] and asks; the supervisor runs a [Server] and decides.
//
// They speak over one SOCK_SEQPACKET pair that only they hold. A request is 40 bytes:
// numbers, and one address where a name was found; no text, no length, no pointer into
// anything. So nothing of what the worker says has to be parsed, and what it cannot say
// it cannot ask for: it names no path, no id, no limit and no command. It asks for "a
// sandbox of revision N", and gets what the supervisor knows of that revision. The worker
// holds what it uses all the time as open files: the listener of the Runtime API, the files
// that freeze and measure, the sockets of the init handlers. So an invocation makes no
// request.
//
// The supervisor ends a worker that breaks these rules: [Server.Serve] returns an error
// then, and all sandboxes end with it.
package privsep
