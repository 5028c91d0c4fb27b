//go:build integration

package serve

import (
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
