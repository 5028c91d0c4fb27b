package api

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// frame is a text message of level INFO (LOG-02).
func frame(text string) []byte {
	b := []byte{0xa5, 0x5a, 0, 0x0f, 0, 0, 0, byte(len(text)), 0, 0, 0, 0, 0, 0, 0, 1}
	return append(b, text...)
}

// INV-03, LOG-34, LOG-01, LOG-06: what a runtime wrote before it answered stands
// between START and END of that very invocation, finished line or not, framed or not,
// through pipes and sockets.
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
				_, _ = p.Extra.Write(frame(fmt.Sprintf("frame %d\nof two lines\n", i)))
				w.do("POST", path(id, "response"), "1")
				next, _ = w.later("GET", nextPath)
				r := <-res
				<-r.Done
				lines := strings.Split(string(r.Tail()), "\n")
				if len(lines) != 8 || !strings.HasPrefix(lines[0], "START RequestId: "+id) || !strings.HasPrefix(lines[5], "END RequestId: "+id) ||
					!strings.HasPrefix(lines[6], "REPORT RequestId: "+id) {
					t.Fatalf("tail of %s:\n%s", id, r.Tail())
				}
				got := strings.Join(lines[1:5], "\n") + "\n"
				for _, format := range []string{"out %d\n", "err %d\n", "frame %d\nof two lines\n"} {
					if want := fmt.Sprintf(format, i); !strings.Contains(got, want) {
						t.Fatalf("no %q in the output of %s: %q", want, id, got)
					}
				}
			}
		})
	}
}
