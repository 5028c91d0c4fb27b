package hosttest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/sandboxd/sandboxd/host"
)

// fakeTB notes how a test ends.
type fakeTB struct {
	testing.TB
	ended string
}

func (t *fakeTB) Helper()           {}
func (t *fakeTB) Fatal(args ...any) { t.ended = fmt.Sprint(args...); panic(t) }
func (t *fakeTB) Skipf(form string, arg ...any) {
	t.ended = fmt.Sprintf("skipped: "+form, arg...)
	panic(t)
}

func TestNeed(t *testing.T) {
	lacking := fmt.Errorf("start: %w", &host.Unsupported{Feature: host.Egress, Need: "no nftables"})
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{lacking, "skipped: host lacks egress: start: no nftables"},
		{errors.New("broken"), "broken"},
		{errors.ErrUnsupported, "unsupported operation"}, // of whom?
	} {
		fake := &fakeTB{}
		func() {
			defer func() { _ = recover() }()
			Need(fake, tt.err)
		}()
		if fake.ended != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, fake.ended, tt.want)
		}
	}
}
