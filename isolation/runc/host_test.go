package runc

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
)

// What a host lacks is told from what goes wrong on it.
func TestHostLacks(t *testing.T) {
	placed := func(h Host) error {
		_, err := place(h, "01234567", "/nowhere")
		return err
	}
	for _, tt := range []struct {
		err  error
		want host.Feature // "": it lacks nothing
		text string
	}{
		{placed(Host{}), host.Cgroups, "mount cgroup2"},
		{placed(Host{Mode: ModeUnified, V2: cgroupRoot, Controllers: []string{"cpu", "io"}}), host.Cgroups, "memory, pids"},
		{placed(Host{Mode: ModeLegacy, Hierarchies: map[string]string{"cpu": "/x", "memory": "/x", "pids": "/x"}}), host.Cgroups, "devices"},
		{Host{Mode: ModeLegacy}.TellsDomains(), host.CgroupV2, "mount cgroup2 at " + unifiedRoot},
		{originError(fmt.Errorf("sock_diag: %w", unix.ENOENT)), host.ConnectionOrigin, "Linux 5.9"},
		{originError(errors.New("no cgroup")), host.ConnectionOrigin, "no cgroup"},
		{originError(os.NewSyscallError("socket", unix.EMFILE)), "", "too many open files"},
	} {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.text) {
			t.Errorf("%v, want an error with %q", tt.err, tt.text)
		}
		if got := errors.Is(tt.err, errors.ErrUnsupported); got != (tt.want != "") || got && !host.Lacks(tt.err, tt.want) {
			t.Errorf("%v: unsupported %v, want %q", tt.err, got, tt.want)
		}
	}
	if err := originError(nil); err != nil {
		t.Error(err)
	}
}

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
