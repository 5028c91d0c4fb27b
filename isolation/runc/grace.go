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
// where there is none.
func (h Host) openOwnProcs() (*os.File, error) {
	root := map[Mode]string{ModeUnified: cgroupRoot, ModeHybrid: unifiedRoot}[h.Mode]
	if root == "" {
		return nil, nil
	}
	own, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	return openPlain(filepath.Join(root, own, "cgroup.procs"), os.O_WRONLY)
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
