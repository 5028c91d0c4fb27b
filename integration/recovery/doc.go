// Package recovery tests what sandboxd promises when something fails or dies: processes of
// a sandbox, the worker, the daemon, disks, memory, descriptors and system calls. Callers
// are told, the next invocation works, no record of an invocation is lost or doubled, and
// nothing is left behind: no process, cgroup, mount, namespace, descriptor, lease or
// goroutine.
package recovery
