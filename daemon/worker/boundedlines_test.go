package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/tracing"
)

// The file of spans has whole lines and never more than its bound. There is one warning
// when it is full, and cold starts are printed all the same.
func TestTraceFull(t *testing.T) {
	var out bytes.Buffer
	name := filepath.Join(t.TempDir(), message.TraceFile)
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newColdStarts(file, false, logging.New(&out, "info", false))
	if err != nil {
		t.Fatal(err)
	}
	if c.lines.left != message.MaxTraceBytes {
		t.Errorf("the bound is %d", c.lines.left)
	}
	const bound = 4000 // some spans
	c.lines.left = bound
	for range 10 {
		ctx, span := c.begin(context.Background())
		_, end := tracing.Step(ctx, "step")
		end()
		span.End()
	}
	if err := c.close(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > bound || len(text) < bound/2 || !bytes.HasSuffix(text, []byte("\n")) {
		t.Errorf("the file has %d bytes and ends with %q", len(text), text[max(len(text)-10, 0):])
	}
	for line := range bytes.Lines(text) {
		if !json.Valid(line) {
			t.Errorf("not whole: %s", line)
		}
	}
	if n := strings.Count(out.String(), "takes no more spans"); n != 1 || !strings.Contains(out.String(), "64 MB") {
		t.Errorf("%d warnings:\n%s", n, out.String())
	}
	if n := strings.Count(out.String(), "cold start: "); n != 10 {
		t.Errorf("%d cold starts are printed", n)
	}
}

// tornWriter takes the first half of what is written, like a disk that is full.
type tornWriter struct{ took []byte }

func (w *tornWriter) Write(p []byte) (int, error) {
	w.took = append(w.took, p[:len(p)/2]...)
	return len(p) / 2, io.ErrShortWrite
}

// Behind a line that the disk took in part no other is written.
func TestTraceTorn(t *testing.T) {
	var disk tornWriter
	lines := &boundedLines{w: &disk, left: 100}
	for range 2 {
		if _, err := lines.Write([]byte("12345678\n")); err != io.ErrShortWrite || lines.failure() != err {
			t.Errorf("%v", err)
		}
	}
	if string(disk.took) != "1234" {
		t.Errorf("the disk has %q", disk.took)
	}
}
