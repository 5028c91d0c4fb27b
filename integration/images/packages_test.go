//go:build integration

package images

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// A zip runs as a directory does, and a second run finds it in the store.
func TestZip(t *testing.T) {
	folders := harness.NewFolders(t)
	code := harness.ZipFile(t, "bootstrap", 0o755, strings.NewReader(string(harness.ShellBootstrap)))
	for range 2 {
		d := harness.StartIn(t, folders, harness.OneCPU, code)
		if s, _ := d.Shell("zipped"); s.Event != "zipped" {
			t.Errorf("answer %+v", s)
		}
		d.Stop()
	}
}

// Layers: the later one wins (ENV-29).
func TestLayers(t *testing.T) {
	layer := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			harness.WriteFile(t, filepath.Join(dir, name), []byte(text), 0o644)
		}
		return dir
	}
	first, second := layer(map[string]string{"both": "first", "only-first": "1"}), harness.ZipFile(t, "both", 0o644, strings.NewReader("second"))
	for _, tt := range []struct {
		layers []string
		both   string
	}{
		{[]string{first, second}, "second"},
		{[]string{first, first, second, second}, "second"}, // which one overlay cannot have
		{[]string{first, second, first}, "first"},
	} {
		args := []string{harness.OneCPU}
		for _, l := range tt.layers {
			args = append(args, "--layer", l)
		}
		d := harness.Start(t, append(args, harness.Function(t))...)
		r := d.Do(script.Step{Op: "read", Path: "/opt/both"}, script.Step{Op: "read", Path: "/opt/only-first"}).Results
		if r[0].Text != tt.both || r[1].Text != "1" {
			t.Errorf("/opt of %q: %+v", tt.layers, r)
		}
		d.Stop()
	}
}
