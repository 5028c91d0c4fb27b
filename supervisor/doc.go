// Package supervisor starts, signals and stops processes inside the domains of a sandbox,
// and reports how they exited (SUP-01 to SUP-22). It does not depend on Lambda, and reaches
// the kernel only through a [Box].
//
// Each domain has an init handler, its PID 1, which starts and reaps the domain's processes.
// A [Sandbox] controls it over a socket (package wire). One goroutine for each domain
// receives messages. Only this goroutine records exits, so an exit is recorded whether or
// not anything waits for it. The handle of a process exists before the process does.
//
// The init handler is not trusted: an invalid message ends the whole sandbox, but never this
// program.
//
// Of Start, Exec, Stop and Freeze only one at a time runs on a domain (SUP-18): they hold
// the domain's token. Terminate, Kill and Thaw do not wait for that token, and Close makes
// all waiting requests fail. The lock order is Sandbox.closer, the tokens of the domains
// (runtime, then extension), the token of the freezer, Sandbox.mu. No call that can block
// is made with Sandbox.mu held.
package supervisor
