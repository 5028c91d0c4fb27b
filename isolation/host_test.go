package isolation

import (
	"testing"

	"github.com/sandboxd/sandboxd/host"
)

// An architecture without a profile is the host's, not a fault of who asks.
func TestNoProfileForArchitecture(t *testing.T) {
	if _, err := SeccompConfig(DefaultProfile, "riscv64"); !host.Lacks(err, host.Seccomp) {
		t.Errorf("%v, want that the host lacks a profile", err)
	}
	if _, err := SeccompConfig("none", amd64); err == nil || host.Lacks(err, host.Seccomp) {
		t.Errorf("a profile that there is not: %v", err)
	}
}
