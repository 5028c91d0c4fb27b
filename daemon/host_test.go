package daemon

import (
	"testing"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/host/doctor"
)

// A host without a must-have is one that cannot, and all that is missing is told.
func TestLacking(t *testing.T) {
	if err := lacking(nil); err != nil {
		t.Error(err)
	}
	err := lacking([]doctor.Finding{{Check: "ext4", Seen: "no such device", Fix: "modprobe ext4"}, {Check: "mke2fs", Seen: "not found", Fix: "apt-get install e2fsprogs"}})
	const want = "this host lacks what sandboxes need: ext4: no such device (fix: modprobe ext4); mke2fs: not found (fix: apt-get install e2fsprogs); see 'sandboxd doctor'"
	if !host.Lacks(err, host.Sandboxes) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
