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
	d := harness.Start(t, harness.OneCPU,
		"--layer", layer(map[string]string{"both": "first", "only-first": "1"}),
		"--layer", harness.ZipFile(t, "both", 0o644, strings.NewReader("second")), harness.Function(t))
	r := d.Do(script.Step{Op: "read", Path: "/opt/both"}, script.Step{Op: "read", Path: "/opt/only-first"}).Results
	if r[0].Text != "second" || r[1].Text != "1" {
		t.Errorf("/opt: %+v", r)
	}
}
