//go:build integration

package runc

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// remain makes a sandbox that cannot be completed for the reason why and whose root
// resists times attempts to remove it.
func remain(t *testing.T, spec isolation.Spec, why error, times int) error {
	t.Helper()
	s, err := engine.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	for range times { // each attempt unmounts what is mounted last
		if err := unix.Mount("resists", s.root, "tmpfs", 0, "size=4k"); err != nil {
			t.Fatal(err)
		}
	}
	return s.rollBack(t.Context(), why)
}

// What is left of a sandbox that could not be made is the engine's: the error names it, and
// whoever has the id can have it removed.
func TestRemains(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	why := errors.New("it could not be made")
	err := remain(t, spec, why, 3)
	left, ok := errors.AsType[*RemainsError](err)
	if !ok || left.ID != spec.ID || !errors.Is(err, why) || !errors.Is(err, unix.EBUSY) {
		t.Fatalf("%v, want why it could not be made and what is left of %s", err, spec.ID)
	}
	if _, err := engine.Create(t.Context(), spec); !errors.Is(err, os.ErrExist) {
		t.Errorf("another sandbox of that id: %v, want it refused", err)
	}
	if err := engine.RemoveRemains(t.Context(), spec.ID); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), spec.ID) {
		t.Errorf("the second attempt: %v, want that it is busy", err)
	}
	// As Close of the engine does.
	if err := engine.removeAllRemains(t.Context()); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), spec.ID) {
		t.Errorf("the third attempt: %v, want that it is busy", err)
	}
	for range 2 { // then nothing is left
		if err := engine.RemoveRemains(t.Context(), spec.ID); err != nil {
			t.Error(err)
		}
	}
	if err := engine.removeAllRemains(t.Context()); err != nil {
		t.Error(err)
	}
	create(t, spec)
}

// A sandbox that its owner closes after all is none of the engine's remains.
func TestRemainsClosedByTheirOwner(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	if err := remain(t, spec, errors.New("why"), 1); err == nil {
		t.Fatal("nothing is left")
	}
	closeSandbox(t, engine.remains.of(spec.ID))
	if ids := engine.remains.ids(); len(ids) != 0 {
		t.Errorf("remains of %q", ids)
	}
}
