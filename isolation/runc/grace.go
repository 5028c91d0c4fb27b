package runc

import (
	"os"
	"path/filepath"
)

// A move of a process into another cgroup waits for a grace period of RCU, 10 to 20 ms,
// if none has been made for about as long (percpu_down_write in the kernel's
// cgroup_attach_lock; without the mount option favordynmods). libcontainer makes such a
// move when it has just begun with a domain. So the wait is begun earlier, by a move that
// moves nothing, and is over by then or soon after: meanwhile the sandbox gets its network,
// its files and libcontainer's process. It holds up whoever makes, removes or freezes a
// cgroup, as libcontainer's wait would, and on a busy host there are two; so a sandbox that
// nobody waits for goes without.

// openOwnProcs opens cgroup.procs of this process's own cgroup in the v2 tree. It is nil
// where there is none, or none within sight: the wait is where it was then.
func (h Host) openOwnProcs() *os.File {
	root := map[Mode]string{ModeUnified: cgroupRoot, ModeHybrid: unifiedRoot}[h.Mode]
	own, err := ownCgroup()
	if root == "" || err != nil {
		return nil
	}
	f, err := openPlain(filepath.Join(root, own, "cgroup.procs"), os.O_WRONLY)
	if err != nil {
		return nil
	}
	return f
}

// beginMove has the kernel wait now for what the next move of a process would wait for. It
// returns when the wait is over.
func (p *placement) beginMove() error {
	if p.ownProcs == nil {
		return nil
	}
	_, err := p.ownProcs.WriteString("0") // this process, to where it is
	return err
}
