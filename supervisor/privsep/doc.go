// Package privsep is the line between two processes: the supervisor, which is root and
// makes sandboxes, and the worker, which has no privilege and reads what strangers say.
// The worker holds a [Client] and asks; the supervisor runs a [Server] and decides.
//
// They speak over one SOCK_SEQPACKET pair that only they hold. A request is 40 bytes:
// numbers, and one address where a name was found; no text, no length, no pointer into
// anything. So nothing of what the worker says has to be parsed, and what it cannot say
// it cannot ask for: it names no path, no id, no limit and no command. It asks for "a
// sandbox", and gets what the operator's command line says a sandbox is. What it then
// uses all the time, the listener of the Runtime API, the files that freeze and measure,
// the sockets of the init handlers, it holds as open files: an invocation makes no
// request.
//
// A worker that breaks these rules is not one of ours any more: [Server.Serve] ends
// with an error, and with it every sandbox.
package privsep
