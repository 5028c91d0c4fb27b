package api

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/rapid"
)

// BenchmarkWarmInvoke is one warm invocation through a runtime that speaks net/http,
// from Invoke to the answer.
func BenchmarkWarmInvoke(b *testing.B) {
	w := newWorld(b, setup{})
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			r, err := w.try(ctx, http.MethodGet, nextPath, "")
			if err != nil {
				return
			}
			id := r.header.Get("Lambda-Runtime-Aws-Request-Id")
			if _, err := w.try(ctx, http.MethodPost, path(id, "response"), r.body); err != nil {
				return
			}
		}
	}()
	w.await(rapid.Idle)
	inv := &rapid.Invocation{ID: "id", Payload: []byte(strings.Repeat("x", 100))}
	b.ReportAllocs()
	for b.Loop() {
		r, err := w.s.Invoke(ctx, inv)
		if err != nil {
			b.Fatal(err)
		}
		<-r.Done
	}
	cancel()
	<-stopped
}
