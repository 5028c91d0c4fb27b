package egress

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
)

// A kernel without a part of what egress takes is a host that cannot; a trial that fails
// for want of files or memory is not.
func TestUntried(t *testing.T) {
	for errno, lacks := range map[unix.Errno]bool{
		unix.EOPNOTSUPP: true, unix.EPROTONOSUPPORT: true, unix.ENOENT: true, unix.EMFILE: false, unix.ENOMEM: false, unix.EPERM: false,
	} {
		err := untried(fmt.Errorf("packet filter: %w", errno))
		if host.Lacks(err, host.Egress) != lacks || !errors.Is(err, errno) || !strings.Contains(err.Error(), "modprobe") {
			t.Errorf("%v: lacks egress %v, want %v", err, !lacks, lacks)
		}
	}
}
