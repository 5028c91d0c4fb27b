// Package hosttest is for tests that need what not every host has.
package hosttest

import (
	"errors"
	"testing"

	"github.com/sandboxd/sandboxd/host"
)

// Need takes the answer to whether this host can do what the test needs. It skips the test
// if err is a [host.Unsupported], fails it if err is any other error, and does nothing if
// err is nil. It is the only way to skip a test. scripts/summary.sh knows the skip by the
// words "host lacks" and the feature, and fails if scripts/skips.txt does not expect it.
func Need(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	e, ok := errors.AsType[*host.Unsupported](err)
	if !ok {
		t.Fatal(err)
	}
	t.Skipf("host lacks %s: %v", e.Feature, err)
}
