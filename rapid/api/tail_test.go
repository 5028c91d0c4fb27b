package api

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// INV-03, LOG-34: what a runtime wrote before it answered stands between START and
// END of that very invocation, finished line or not, through pipes and sockets.
func TestOutputBelongsToItsInvocation(t *testing.T) {
	for _, kind := range []telemetry.Descriptors{telemetry.Pipes, telemetry.Sockets} {
		t.Run(string(kind), func(t *testing.T) {
			w := newWorld(t, setup{config: func(c *rapid.Config) { c.Settings.Descriptors = kind }})
			p := w.running()
			_, _ = p.Stderr.WriteString("init output\n")
			next, _ := w.later("GET", nextPath)
			for i := range 50 {
				id := fmt.Sprintf("id-%d", i)
				res := w.invoke(id)
				<-next
				_, _ = fmt.Fprintf(p.Stdout, "out %d\n", i)
				_, _ = fmt.Fprintf(p.Stderr, "err %d", i)
				w.do("POST", path(id, "response"), "1")
				next, _ = w.later("GET", nextPath)
				r := <-res
				<-r.Done
				lines := strings.Split(string(r.Tail()), "\n")
				if len(lines) != 6 || !strings.HasPrefix(lines[0], "START RequestId: "+id) || !strings.HasPrefix(lines[3], "END RequestId: "+id) ||
					!strings.HasPrefix(lines[4], "REPORT RequestId: "+id) {
					t.Fatalf("tail of %s:\n%s", id, r.Tail())
				}
				if got := lines[1] + lines[2]; !strings.Contains(got, fmt.Sprintf("out %d", i)) || !strings.Contains(got, fmt.Sprintf("err %d", i)) {
					t.Fatalf("output of %s: %q", id, lines[1:3])
				}
			}
		})
	}
}
