package tracing

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Mark is a step that has ended, as another process is told of it.
type Mark struct {
	ID, Parent int // Parent is the ID of the step that it is a part of, 0 if of none
	Name       string
	Begin, End time.Time
}

// Recorder keeps the steps of contexts that it has made, for a process that prints no
// traces itself. Safe for concurrent use. The zero value is ready.
type Recorder struct {
	noop.TracerProvider
	mu    sync.Mutex
	marks []Mark // by ID, which begins with 1
	taken []bool
}

// Context returns a context whose steps are recorded.
func (r *Recorder) Context(ctx context.Context) context.Context {
	return trace.ContextWithSpan(ctx, recorded{r: r})
}

// Take returns the steps that have ended since it was called last.
func (r *Recorder) Take() (ended []Mark) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, m := range r.marks {
		if !r.taken[i] && !m.End.IsZero() {
			r.taken[i] = true
			ended = append(ended, m)
		}
	}
	return ended
}

// Tracer implements trace.TracerProvider.
func (r *Recorder) Tracer(string, ...trace.TracerOption) trace.Tracer { return recordingTracer{r: r} }

type recordingTracer struct {
	noop.Tracer
	r *Recorder
}

// Start implements trace.Tracer.
func (t recordingTracer) Start(ctx context.Context, name string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	parent, _ := trace.SpanFromContext(ctx).(recorded)
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	s := recorded{r: t.r, id: len(t.r.marks) + 1}
	t.r.marks = append(t.r.marks, Mark{ID: s.id, Parent: parent.id, Name: name, Begin: time.Now()})
	t.r.taken = append(t.r.taken, false)
	return trace.ContextWithSpan(ctx, s), s
}

// recorded is a span of a Recorder.
type recorded struct {
	noop.Span
	r  *Recorder
	id int // of its mark; 0 is what all steps are a part of
}

// End implements trace.Span.
func (s recorded) End(...trace.SpanEndOption) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.marks[s.id-1].End = time.Now()
}

// TracerProvider implements trace.Span.
func (s recorded) TracerProvider() trace.TracerProvider { return s.r }

// Replay makes steps of the marks of one Recorder. The zero value is ready. Not safe for
// concurrent use.
type Replay struct{ steps map[int]context.Context }

// Add makes steps of marks that ended while the step in ctx lasted. Those whose parent
// is not known become parts of that step.
func (r *Replay) Add(ctx context.Context, marks []Mark) {
	if r.steps == nil {
		r.steps = map[int]context.Context{}
	}
	for _, m := range marks {
		parent, ok := r.steps[m.Parent]
		if !ok {
			parent = ctx
		}
		var span trace.Span
		r.steps[m.ID], span = trace.SpanFromContext(ctx).TracerProvider().Tracer(Scope).Start(parent, m.Name, trace.WithTimestamp(m.Begin))
		span.End(trace.WithTimestamp(m.End))
	}
}
