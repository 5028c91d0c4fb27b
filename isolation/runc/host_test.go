package runc

import (
	"fmt"
	"strings"
	"testing"
)

// A line of the list of mounts may be longer than any buffer, and those behind it count.
func TestLongMountLines(t *testing.T) {
	overlay := "overlay /var/lib/images/1 overlay rw,lowerdir=" + strings.Repeat("/a/layer:", 20_000) + " 0 0\n"
	for _, tt := range []struct{ mounts, want string }{
		{"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "/sys/fs/cgroup map[]"},
		{"tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n" +
			"cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n",
			"/sys/fs/cgroup/unified map[cpu:/sys/fs/cgroup/cpu,cpuacct cpuacct:/sys/fs/cgroup/cpu,cpuacct memory:/sys/fs/cgroup/memory]"},
	} {
		h := Host{Hierarchies: map[string]string{}}
		h.findTrees("proc /proc proc rw 0 0\n" + overlay + tt.mounts)
		if got := fmt.Sprintln(h.V2, h.Hierarchies); got != tt.want+"\n" {
			t.Errorf("%s: %swant %s", tt.mounts, got, tt.want)
		}
	}
}
