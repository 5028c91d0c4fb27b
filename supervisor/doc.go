// Package supervisor runs processes inside the domains of a sandbox and tells how
// they end (SUP-01 to SUP-22). It knows nothing of Lambda, and of the kernel only
// what a [Box] offers.
//
// A domain is led by its PID 1, the init handler, over a control socket (package
// wire). For each domain one goroutine receives; it alone ends processes, so an exit
// is recorded whether or not anybody waits for it. The handle of a process exists
// before the process does.
//
// What the init handler says is not trusted: a message that does not fit ends the
// whole sandbox, and never this program.
//
// Start, Exec, Stop and Freeze take turns on a domain (SUP-18); Terminate, Kill,
// Thaw do not wait for a turn, and Close ends what waits. Locks are taken in this
// order: Sandbox.closer, the turns of the domains (runtime, extension), the turn of
// the freezer, Sandbox.mu. Nothing that can block is called with Sandbox.mu held.
package supervisor
