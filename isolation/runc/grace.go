package runc

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A move of a process into another cgroup waits for a grace period of RCU, 10 to 20 ms,
// if none has been made for about as long (percpu_down_write in the kernel's
// cgroup_attach_lock; without the mount option favordynmods). libcontainer makes such a
// move when it has just begun with a domain. So the wait is begun earlier, by a move that
// moves nothing, and is over by then or soon after: meanwhile the sandbox gets its network,
// its files and libcontainer's process. It holds up whoever makes, removes or freezes a
// cgroup, as libcontainer's wait would, and on a busy host there are two; so a sandbox that
// nobody waits for goes without.

// A foothold is the cgroup in the v2 tree that this process was in when it was made.
type foothold struct {
	path  string   // as /proc/self/cgroup has it
	procs *os.File // its cgroup.procs
}

// newFoothold is nil where there is none, or none within sight: then the wait is where it
// was. The path is one below the root of the cgroup namespace, and /sys/fs/cgroup may show
// another part of the tree, with another cgroup of that path.
func newFoothold(h Host) *foothold {
	root := map[Mode]string{ModeUnified: cgroupRoot, ModeHybrid: unifiedRoot}[h.Mode]
	own, err := ownCgroup()
	if root == "" || err != nil {
		return nil
	}
	file, err := openPlain(filepath.Join(root, own, "cgroup.procs"), os.O_RDWR)
	if err != nil {
		return nil
	}
	pids, err := io.ReadAll(file)
	if err != nil || !slices.Contains(strings.Fields(string(pids)), strconv.Itoa(os.Getpid())) {
		file.Close()
		return nil
	}
	return &foothold{own, file}
}

func (f *foothold) close() {
	if f != nil {
		f.procs.Close()
	}
}

// beginMove has the kernel wait now for what the next move of a process would wait for. It
// returns when the wait is over. Once somebody has moved this process elsewhere, it does
// nothing.
func (f *foothold) beginMove() error {
	if f == nil {
		return nil
	}
	if own, err := ownCgroup(); err != nil || own != f.path {
		return err
	}
	_, err := f.procs.WriteString("0") // this process, to where it is
	return err
}
