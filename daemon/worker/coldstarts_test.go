package worker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/internal/tracing"
)

// traced runs f in a traced cold start and returns what was logged, and the names of the
// spans in the file.
func traced(t *testing.T, format string, f func(ctx context.Context, end func())) (log string, kept []string) {
	t.Helper()
	var out bytes.Buffer
	name := filepath.Join(t.TempDir(), "trace.jsonl")
	traces, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newColdStarts(traces, format == "JSON", logging.New(&out, "info", format == "JSON"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := c.begin(context.Background())
	f(ctx, func() { span.End() })
	if err := c.close(); err != nil {
		t.Error(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var s struct{ Name string }
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		kept = append(kept, s.Name)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return out.String(), kept
}

// The steps are printed in the order of their begin, inner ones further right; what
// comes after the end is kept only.
func TestTraceInit(t *testing.T) {
	steps := func(ctx context.Context, end func()) {
		outer, outerEnds := tracing.Step(ctx, "outer")
		_, innerEnds := tracing.Step(outer, "inner")
		innerEnds()
		outerEnds()
		end()
		end()
		_, lateEnds := tracing.Step(ctx, "late")
		lateEnds()
	}
	log, kept := traced(t, "Text", steps)
	if want := `^cold start: [0-9.]+ ms\n +begin +ms\n.*\|  outer\n.*\|    inner\n$`; !regexp.MustCompile(want).MatchString(log) {
		t.Errorf("the log has\n%s, want it to match %s", log, want)
	}
	if got := strings.Join(kept, " "); got != "inner outer cold start late" {
		t.Errorf("the file has %q", got)
	}
	log, _ = traced(t, "JSON", steps)
	var entry struct {
		Msg   string
		Steps []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(log), &entry); err != nil || entry.Msg != "cold start" || len(entry.Steps) != 2 || entry.Steps[1].Name != "inner" {
		t.Errorf("%v: the log has %s", err, log)
	}
}

// Without the flag nothing is traced.
func TestNoTrace(t *testing.T) {
	var c *coldStarts
	ctx, span := c.begin(t.Context())
	_, end := tracing.Step(ctx, "nothing")
	end()
	span.End()
	if span.IsRecording() {
		t.Error("something is recorded")
	}
}

func TestBar(t *testing.T) {
	const total = 40 * time.Millisecond // a character each
	for _, tt := range []struct {
		begin, took int // ms
		want        string
	}{
		{0, 40, strings.Repeat("=", 40)},
		{10, 5, strings.Repeat(" ", 10) + "=====" + strings.Repeat(" ", 25)},
		{40, 0, strings.Repeat(" ", 39) + "="},
		{38, 9, strings.Repeat(" ", 38) + "=="},
	} {
		got := bar(time.Duration(tt.begin)*time.Millisecond, time.Duration(tt.took)*time.Millisecond, total)
		if got != tt.want {
			t.Errorf("bar(%d, %d) is %q, want %q", tt.begin, tt.took, got, tt.want)
		}
	}
	if got := bar(0, 0, 0); len(got) != barWidth {
		t.Errorf("the bar of nothing is %q", got)
	}
}
