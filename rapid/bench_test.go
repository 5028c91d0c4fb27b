package rapid

import (
	"context"
	"testing"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

// BenchmarkInvoke measures one invocation of a warm sandbox without HTTP, from Invoke until
// the sandbox is free again, in both modes.
func BenchmarkInvoke(b *testing.B) {
	for _, mode := range []struct {
		name string
		kind Initialization
	}{{"classic", OnDemand}, {"managed", Managed}} {
		b.Run(mode.name, func(b *testing.B) {
			w := &world{}
			ready := make(chan struct{})
			sup := fakesup.New(map[string]fakesup.Program{bootstrap: func(p *fakesup.Process) supervisor.Exit {
				close(ready)
				return echo(0)(w)(p)
			}})
			w.s = New(Config{Function: testFunction(), Settings: DefaultSettings(), Initialization: mode.kind, MaxConcurrency: 2}, fakeSup{sup})
			w.s.openOutput = func(bool, func(telemetry.Message)) (output, error) { return noOutput{}, nil }
			ctx, cancel := context.WithCancel(context.Background())
			ran := make(chan error, 1)
			go func() { ran <- w.s.Run(ctx) }()
			<-ready
			inv := &Invocation{ID: "id", Payload: []byte("{}"), NoTail: true}
			invoke := func() {
				r, err := w.s.Invoke(ctx, inv)
				if err != nil {
					b.Fatal(err)
				}
				<-r.Done
			}
			invoke()
			b.ReportAllocs()
			for b.Loop() {
				invoke()
			}
			cancel()
			if err := <-ran; err != nil {
				b.Error(err)
			}
		})
	}
}
