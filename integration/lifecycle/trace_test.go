//go:build integration

package lifecycle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// --trace-init tells where the time of a cold start goes, for a sandbox that was ready
// and for one that was not, and keeps it as spans.
func TestTraceInit(t *testing.T) {
	for name, tt := range map[string]struct {
		pool  string
		steps []string
	}{
		"ready": {"--pool=2", []string{"ready sandbox", "limits", "files of the runtime domain", "domains", "runtime until everyone asks for an event"}},
		"new": {"--pool=0", []string{"new sandbox", "cgroup", "network", "root", "domains", "container of the runtime domain",
			"handshake of the init handler", "files of the runtime domain", "runtime until everyone asks for an event"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := harness.NewFolders(t)
			d := harness.StartIn(t, f, "--trace-init", "--concurrency=3", tt.pool, harness.Function(t))
			if name == "ready" {
				waitInits(d, 2) // so the first of them is ready
			}
			d.Do()
			trace, ok := d.Log.Wait(harness.Patience, func(line string) bool { return strings.HasPrefix(line, "cold start of function-") })
			if !ok {
				t.Fatalf("no trace in the log:\n%s", d.Log.Text())
			}
			d.Stop()
			text := d.Log.Text()
			text = text[strings.Index(text, trace):]
			spans, err := os.ReadFile(filepath.Join(f.State, "trace.jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			for _, step := range tt.steps {
				i := strings.Index(text, step+"\n")
				if i < 0 {
					t.Errorf("the trace lacks %q, or has it too early:\n%s", step, text)
				} else {
					text = text[i:]
				}
				if !strings.Contains(string(spans), `"Name":"`+step+`"`) {
					t.Errorf("no span has the name %q", step)
				}
			}
		})
	}
}
