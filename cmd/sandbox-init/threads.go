package main

import (
	"runtime"
	"sync"
)

// spareThreads is more than the handler ever uses at once: three that run Go, and
// the ones that wait for children, for the socket, for sysinfo, and in a fork.
const spareThreads = 8

// reserveThreads makes the Go runtime create the threads that it may want later. It
// keeps idle threads for reuse, and it crashes when it wants one and the processes
// of the domain have used up the pids limit: they must not be able to end the
// handler in this way.
func reserveThreads() {
	var up, down sync.WaitGroup
	up.Add(spareThreads)
	down.Add(spareThreads)
	for range spareThreads {
		go func() {
			defer down.Done()
			runtime.LockOSThread() // each needs a thread of its own until all are there
			defer runtime.UnlockOSThread()
			up.Done()
			up.Wait()
		}()
	}
	down.Wait()
}
