// Package tracing marks the steps of what takes long, as OpenTelemetry spans. Who wants
// to see them begins a span of a provider of its own and passes it on in the context;
// without one, marking a step costs next to nothing.
package tracing

import (
	"context"

	"go.opentelemetry.io/otel/trace"
)

// Scope is the instrumentation scope of all spans.
const Scope = "github.com/sandboxd/sandboxd"

// Step begins a step of the span in ctx. The returned context makes what begins with it
// a part of the step; the returned function ends the step, and may be called from any
// goroutine, once.
func Step(ctx context.Context, name string) (context.Context, func()) {
	ctx, span := trace.SpanFromContext(ctx).TracerProvider().Tracer(Scope).Start(ctx, name)
	return ctx, func() { span.End() }
}
