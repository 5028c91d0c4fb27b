package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/tracing"
)

// coldStarts implements --trace-init. It collects the spans of every cold start, prints
// them when the sandbox has initialized or failed to, and stores them in a file. It
// implements sdktrace.SpanProcessor. A nil *coldStarts traces nothing. It is safe for
// concurrent use.
type coldStarts struct {
	provider *sdktrace.TracerProvider
	log      *logrus.Logger
	table    bool // print a table, else one log entry with all steps
	file     *os.File
	lines    *boundedLines         // to the file
	exporter sdktrace.SpanExporter // to lines

	mu   sync.Mutex
	open map[trace.TraceID][]sdktrace.ReadOnlySpan // ended steps of cold starts that have not ended

	full sync.Once // warns that the file takes no more
}

// newColdStarts returns a coldStarts that stores spans in file, which it owns. The caller
// must close it.
func newColdStarts(file *os.File, json bool, log *logrus.Logger) (*coldStarts, error) {
	lines := &boundedLines{w: file, left: message.MaxTraceBytes}
	exporter, err := stdouttrace.New(stdouttrace.WithWriter(lines))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--trace-init: %w", err), file.Close())
	}
	c := &coldStarts{log: log, table: !json, file: file, lines: lines, exporter: exporter,
		open: map[trace.TraceID][]sdktrace.ReadOnlySpan{}}
	c.provider = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(c), sdktrace.WithResource(resource.Empty()))
	return c, nil
}

// begin starts the trace of one cold start. The first End of the span ends it; later calls
// have no effect.
func (c *coldStarts) begin(ctx context.Context) (context.Context, trace.Span) {
	if c == nil {
		return ctx, trace.SpanFromContext(ctx)
	}
	return c.provider.Tracer(tracing.Scope).Start(ctx, "cold start", trace.WithNewRoot())
}

// OnStart implements sdktrace.SpanProcessor.
func (c *coldStarts) OnStart(_ context.Context, s sdktrace.ReadWriteSpan) {
	if !s.Parent().IsValid() {
		c.mu.Lock()
		c.open[s.SpanContext().TraceID()] = nil
		c.mu.Unlock()
	}
}

// OnEnd implements sdktrace.SpanProcessor. A step that ends after its cold start, such as
// one of a later initialization, is stored but not printed.
func (c *coldStarts) OnEnd(s sdktrace.ReadOnlySpan) {
	id := s.SpanContext().TraceID()
	c.mu.Lock()
	steps, open := c.open[id]
	root := !s.Parent().IsValid()
	if open && !root {
		c.open[id] = append(steps, s)
		c.mu.Unlock()
		return
	}
	delete(c.open, id)
	c.mu.Unlock()
	if err := c.exporter.ExportSpans(context.Background(), append(steps, s)); err != nil {
		c.full.Do(func() {
			c.log.WithError(cmp.Or(c.lines.failure(), err)).Warnf("%s takes no more spans; cold starts are still printed", c.file.Name())
		})
	}
	if root {
		c.print(s, steps)
	}
}

func (c *coldStarts) print(root sdktrace.ReadOnlySpan, steps []sdktrace.ReadOnlySpan) {
	slices.SortStableFunc(steps, func(a, b sdktrace.ReadOnlySpan) int {
		return cmp.Or(a.StartTime().Compare(b.StartTime()), b.EndTime().Compare(a.EndTime()))
	})
	if c.table {
		var b strings.Builder
		writeSteps(&b, root, steps)
		_, _ = io.WriteString(c.log.Out, b.String()) // an AsyncWriter, which never fails
		return
	}
	type step struct {
		Name            string
		BeginMS, TookMS float64
	}
	list := make([]step, 0, len(steps))
	for _, s := range steps {
		list = append(list, step{s.Name(), ms(s.StartTime().Sub(root.StartTime())), ms(s.EndTime().Sub(s.StartTime()))})
	}
	c.log.WithFields(logrus.Fields{"ms": ms(root.EndTime().Sub(root.StartTime())), "steps": list}).Info(root.Name())
}

// barWidth is the width of the bar for a whole trace, in characters.
const barWidth = 40

// writeSteps writes a table with the begin and duration of each step, and a bar for both.
func writeSteps(w io.Writer, root sdktrace.ReadOnlySpan, steps []sdktrace.ReadOnlySpan) {
	depth := map[trace.SpanID]int{root.SpanContext().SpanID(): 0}
	total := root.EndTime().Sub(root.StartTime())
	fmt.Fprintf(w, "%s: %.2f ms\n%10s %10s\n", root.Name(), ms(total), "begin", "ms")
	for _, s := range steps {
		level := depth[s.Parent().SpanID()]
		depth[s.SpanContext().SpanID()] = level + 1
		begin, took := s.StartTime().Sub(root.StartTime()), s.EndTime().Sub(s.StartTime())
		fmt.Fprintf(w, "%10.2f %10.2f  |%s|  %s%s\n", ms(begin), ms(took), bar(begin, took, total), strings.Repeat("  ", level), s.Name())
	}
}

// bar draws the part of a trace that a step takes. It cuts off what lies outside the trace.
func bar(begin, took, total time.Duration) string {
	at := func(d time.Duration) int {
		return min(max(int(barWidth*d/max(total, 1)), 0), barWidth)
	}
	from, to := at(begin), at(begin+took)
	if from == to { // shorter than a character: draw one
		from, to = min(from, barWidth-1), min(from, barWidth-1)+1
	}
	return strings.Repeat(" ", from) + strings.Repeat("=", to-from) + strings.Repeat(" ", barWidth-to)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Shutdown implements sdktrace.SpanProcessor.
func (c *coldStarts) Shutdown(ctx context.Context) error { return c.exporter.Shutdown(ctx) }

// ForceFlush implements sdktrace.SpanProcessor. Every span is written when it ends, so it does
// nothing.
func (c *coldStarts) ForceFlush(context.Context) error { return nil }

// close releases the file.
func (c *coldStarts) close() error {
	return errors.Join(c.provider.Shutdown(context.Background()), c.file.Close())
}
