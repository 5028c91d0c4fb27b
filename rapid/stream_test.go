package rapid

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

// slowly is a body of parts that come one each pause; then it ends with err.
type slowly struct {
	ctx   context.Context // of the process that sends
	pause time.Duration
	parts []string
	err   error // io.EOF for a body that is complete
}

func (r *slowly) Read(p []byte) (int, error) {
	select {
	case <-time.After(r.pause):
	case <-r.ctx.Done():
		return 0, io.ErrUnexpectedEOF
	}
	if len(r.parts) == 0 {
		return 0, r.err
	}
	n := copy(p, r.parts[0])
	if r.parts[0] = r.parts[0][n:]; r.parts[0] == "" {
		r.parts = r.parts[1:]
	}
	return n, nil
}

// sent is what became of a body that the runtime streamed.
type sent struct {
	n   int64
	err error // of ReadFrom
	fin error // of FinishAnswer
}

// outcomes are those of a runtime's bodies, in its bubble.
type outcomes struct{ of chan sent }

// streams is a runtime that streams the body for each event; what became of it goes into got.
func streams(got *outcomes, body func(p *fakesup.Process) io.Reader, change func(*Answer)) func(*world) fakesup.Program {
	return func(w *world) fakesup.Program {
		got.of = make(chan sent, 2)
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			for {
				e, err := c.Next(p.Ctx)
				if err != nil {
					return killed
				}
				st, err := c.BeginAnswer(p.Ctx, e.Invocation.ID, AnswerHead{Mode: "streaming", ContentType: "text/plain"})
				if err != nil || st == nil {
					w.t.Errorf("BeginAnswer: %v, %v", st, err)
					return supervisor.Exit{Code: 9}
				}
				var a Answer
				var s sent
				s.n, s.err = st.ReadFrom(body(p))
				a.Seen, a.TooLarge, a.Truncated = s.n, errors.Is(s.err, ErrStreamLimit), s.err != nil
				if change != nil {
					change(&a)
				}
				s.fin = c.FinishAnswer(p.Ctx, e.Invocation.ID, a)
				got.of <- s
			}
		}
	}
}

// begin starts an invocation whose answer is to stream.
func (w *world) begin(id string) *Result {
	w.t.Helper()
	synctest.Wait() // initialized
	r, err := w.s.Invoke(context.Background(), &Invocation{ID: id, Payload: []byte("{}"), Stream: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if r.Stream == nil {
		w.t.Fatalf("the answer does not stream: %+v", r)
	}
	return r
}

// collect reads a stream to its end.
func collect(st *Stream) string {
	var b strings.Builder
	for chunk := range st.Chunks() {
		b.Write(chunk)
	}
	return b.String()
}

// RT-69, LC-41, TL-45: bytes come as they are sent, and the figures tell of the bytes.
func TestStream(t *testing.T) {
	got := new(outcomes)
	body := func(p *fakesup.Process) io.Reader {
		return &slowly{ctx: p.Ctx, pause: 100 * time.Millisecond, parts: []string{"one ", "two ", "three"}, err: io.EOF}
	}
	var log bytes.Buffer
	inWorld(t, streams(got, body, nil), func(w *world) {
		start := time.Now()
		r := w.begin("id")
		if r.ContentType != "text/plain" || time.Since(start) != 0 {
			t.Errorf("content type %q after %v, want it at the beginning", r.ContentType, time.Since(start))
		}
		var chunks []string
		for chunk := range r.Stream.Chunks() {
			chunks = append(chunks, string(chunk))
			if want := time.Duration(len(chunks)) * 100 * time.Millisecond; time.Since(start) != want {
				t.Errorf("chunk %q came after %v, want %v", chunk, time.Since(start), want)
			}
		}
		if !slices.Equal(chunks, []string{"one ", "two ", "three"}) {
			t.Errorf("chunks %q", chunks)
		}
		end := r.Stream.Result()
		if end.FunctionError || end.Payload != nil {
			t.Errorf("%+v", end)
		}
		<-end.Done
		if !strings.Contains(string(end.Tail()), "REPORT RequestId: id") {
			t.Errorf("tail %q", end.Tail())
		}
		if s := <-got.of; s.n != 13 || s.err != nil || s.fin != nil {
			t.Errorf("%+v", s)
		}
	}, with(func(c *Config, _ *fakesup.Supervisor) { c.Sink = telemetry.NewWriter(&log, telemetry.JSON) }))
	checkSpans(t, log.Bytes())
}

func checkSpans(t *testing.T, log []byte) {
	t.Helper()
	for line := range bytes.Lines(log) {
		var r struct {
			Type   string
			Record struct {
				Metrics struct{ ProducedBytes, DurationMs float64 }
				Spans   []struct {
					Name       string
					DurationMs float64
				}
			}
		}
		if err := json.Unmarshal(line, &r); err != nil || r.Type != "platform.runtimeDone" {
			continue
		}
		want := map[string]float64{"responseLatency": 0, "responseDuration": 400, "runtimeOverhead": 0}
		for _, s := range r.Record.Spans {
			if d, ok := want[s.Name]; !ok || d != s.DurationMs {
				t.Errorf("span %s of %v ms, want %v", s.Name, s.DurationMs, d)
			}
		}
		if r.Record.Metrics.ProducedBytes != 13 || r.Record.Metrics.DurationMs != 400 || len(r.Record.Spans) != 3 {
			t.Errorf("%s", line)
		}
		return
	}
	t.Errorf("no runtimeDone in %s", log)
}

// RT-70, RT-71, RT-73, INV-32: streams that fail. What had come before is not lost.
func TestStreamFails(t *testing.T) {
	half := func(err error) func(p *fakesup.Process) io.Reader {
		return func(p *fakesup.Process) io.Reader {
			return &slowly{ctx: p.Ctx, pause: time.Millisecond, parts: []string{"half"}, err: err}
		}
	}
	hang := func(p *fakesup.Process) io.Reader {
		return io.MultiReader(strings.NewReader("half"), &slowly{ctx: p.Ctx, pause: time.Hour})
	}
	tests := []struct {
		name           string
		body           func(p *fakesup.Process) io.Reader
		change         func(*Answer)
		during         func(w *world)
		code, kind     string // ErrorCode, and the type for logs
		details, state string
		sendErr        error
		refused        RefusalType
	}{
		{name: "trailers", body: half(io.EOF), change: func(a *Answer) { a.TrailerType, a.TrailerBody = "My Error", []byte(`{"errorMessage":"m"}`) },
			code: "My Error", kind: "Runtime.Unknown", details: `{"errorMessage":"m"}`, state: "Idle"},
		{name: "trailer without a body", body: half(io.EOF), change: func(a *Answer) { a.TrailerType = "Function.Mine" },
			code: "Function.Mine", kind: "Function.Mine", details: `{"errorType":"Function.Mine","errorMessage":""}`, state: "Idle"},
		{name: "broken chunks", body: half(io.ErrUnexpectedEOF), code: "Runtime.TruncatedResponse", kind: "Runtime.TruncatedResponse",
			details: `{"errorType":"Runtime.TruncatedResponse","errorMessage":"RequestId: id Error: HTTP request detected as truncated"}`,
			state:   "Idle", sendErr: io.ErrUnexpectedEOF, refused: TruncatedHTTPRequest},
		{name: "timeout", body: hang, code: "Sandbox.Timeout", kind: "Sandbox.Timeout",
			details: `{"errorType":"Sandbox.Timeout","errorMessage":"RequestId: id Error: Task timed out after 3.00 seconds"}`,
			state:   "Resetting Cold", sendErr: ErrClosed},
		{name: "end of the sandbox", body: hang, during: func(w *world) { time.Sleep(time.Second); w.cancel() }, code: "Sandbox.Failure", kind: "Sandbox.Failure",
			details: `{"errorType":"Sandbox.Failure","errorMessage":"RequestId: id Error: the sandbox ended before the response was complete"}`,
			state:   "ShuttingDown Dead", sendErr: ErrClosed},
		{name: "out of memory", body: hang, during: func(w *world) { time.Sleep(time.Second); w.mayFail = true; w.sup.KillForMemory() }, code: "Runtime.OutOfMemory",
			kind: "Runtime.OutOfMemory", details: `{"errorType":"Runtime.OutOfMemory","errorMessage":"RequestId: id Error: Runtime exited with error: signal: killed: out of memory, the limit is 128 MB"}`,
			state: "Resetting Dead", sendErr: io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := new(outcomes)
			inWorld(t, streams(got, tt.body, tt.change), func(w *world) {
				r := w.begin("id")
				if tt.during != nil {
					go tt.during(w)
				}
				if text := collect(r.Stream); text != "half" {
					t.Errorf("%q came, want what was sent before the failure", text)
				}
				end := r.Stream.Result()
				code := end.Code
				if code == "" {
					code = end.ErrorType
				}
				if !end.FunctionError || code != tt.code || end.ErrorType != tt.kind || string(end.Payload) != tt.details {
					t.Errorf("%s %s %s", code, end.ErrorType, end.Payload)
				}
				<-end.Done
				w.wantStates("Initializing Idle Invoking " + tt.state)
				if tt.sendErr == nil || tt.refused != "" {
					var refusal *Refusal
					s := <-got.of
					if !errors.Is(s.err, tt.sendErr) || tt.refused != "" && (!errors.As(s.fin, &refusal) || refusal.Type != tt.refused) {
						t.Errorf("the runtime saw %+v", s)
					}
				}
			})
		})
	}
}

// INV-32, LC-49: a runtime that dies in the middle of a body is a crash, whichever of
// the two ends is seen first; the invoker of the whole body is told the same.
func TestRuntimeDiesInTheMiddleOfABody(t *testing.T) {
	for _, stream := range []bool{true, false} {
		program := func(w *world) fakesup.Program {
			return func(p *fakesup.Process) supervisor.Exit {
				c := w.s.NewClient()
				e, _ := c.Next(p.Ctx)
				_, _ = c.BeginAnswer(p.Ctx, e.Invocation.ID, AnswerHead{Mode: "streaming"})
				_ = c.FinishAnswer(p.Ctx, e.Invocation.ID, Answer{Seen: 4, Truncated: true}) // the connection is seen to end first
				time.Sleep(20 * time.Millisecond)
				return supervisor.Exit{Code: 3}
			}
		}
		inWorld(t, program, func(w *world) {
			r, err := w.s.Invoke(context.Background(), &Invocation{ID: "id", Stream: stream})
			if err != nil {
				t.Fatal(err)
			}
			if stream {
				collect(r.Stream)
				r = r.Stream.Result()
			}
			want := `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: id Error: Runtime exited with error: exit status 3"}`
			if string(r.Payload) != want {
				t.Errorf("stream %v: %s\nwant %s", stream, r.Payload, want)
			}
			<-r.Done
		})
	}
}

// RT-71: the limit is exact, and the runtime goes on after it.
func TestStreamLimit(t *testing.T) {
	const limit = 100_000
	for _, size := range []int{limit, limit + 1, 3 * limit} {
		got := new(outcomes)
		body := func(*fakesup.Process) io.Reader { return strings.NewReader(strings.Repeat("x", size)) }
		inWorld(t, streams(got, body, nil), func(w *world) {
			for _, id := range []string{"one", "two"} {
				r := w.begin(id)
				text := collect(r.Stream)
				end, s := r.Stream.Result(), <-got.of
				var refusal *Refusal
				switch {
				case len(text) != min(size, limit):
					t.Errorf("%d bytes of %d came", len(text), size)
				case size == limit && (end.FunctionError || s.fin != nil):
					t.Errorf("%+v, %v", end, s.fin)
				case size > limit && (end.ErrorType != "Function.ResponseSizeTooLarge" || !errors.As(s.fin, &refusal) || refusal.Type != RequestEntityTooLarge):
					t.Errorf("%s, %v", end.Payload, s.fin)
				}
				<-end.Done
			}
		}, with(func(c *Config, _ *fakesup.Supervisor) { c.Settings.Stream.Bytes = limit }))
	}
}

// RT-71: 6 MiB pass at once, the rest at 2 MiB a second.
func TestStreamShaping(t *testing.T) {
	got := new(outcomes)
	body := func(*fakesup.Process) io.Reader { return strings.NewReader(strings.Repeat("x", 10<<20)) }
	inWorld(t, streams(got, body, nil), func(w *world) {
		synctest.Wait()
		start := time.Now()
		r := w.begin("id")
		n := 0
		for chunk := range r.Stream.Chunks() {
			n += len(chunk)
			least := time.Duration(max(0, n-6<<20)) * time.Second / (2 << 20)
			if off := time.Since(start) - least; off < 0 || off > time.Millisecond {
				t.Fatalf("%d bytes after %v, want %v", n, time.Since(start), least)
			}
		}
		if n != 10<<20 || r.Stream.Result().FunctionError {
			t.Errorf("%d bytes, %+v", n, r.Stream.Result())
		}
	}, with(func(c *Config, _ *fakesup.Supervisor) { c.Settings.Stream.Rate = 2 << 20 }))
}

// An invoker that takes nothing, from the beginning or after one piece, holds that at most,
// and the sandbox until the deadline.
func TestStreamNobodyReads(t *testing.T) {
	for _, pieces := range []int{0, 1} {
		var taken counter
		got := new(outcomes)
		body := func(*fakesup.Process) io.Reader { return io.TeeReader(endless{}, &taken) }
		inWorld(t, streams(got, body, nil), func(w *world) {
			r := w.begin("id")
			free, ended := make(chan struct{}), make(chan struct{})
			if pieces > 0 {
				go func() {
					defer close(ended)
					for range r.Stream.Chunks() {
						<-free
					}
				}()
			}
			synctest.Wait()
			if want := pieces * streamPiece; taken != counter(want) {
				t.Errorf("%d bytes are held, want %d", taken, want)
			}
			<-r.Done
			if kind := r.Stream.Result().ErrorType; kind != "Sandbox.Timeout" {
				t.Errorf("it ended with %s", kind)
			}
			if s := <-got.of; s.n != int64(pieces*streamPiece) || !errors.Is(s.err, ErrClosed) {
				t.Errorf("the runtime saw %+v", s)
			}
			if close(free); pieces > 0 {
				<-ended
			}
			if n := len(collect(r.Stream)); n != 0 {
				t.Errorf("%d bytes can still be read", n)
			}
			w.wantStates("Initializing Idle Invoking Resetting Cold")
		})
	}
}

// The invocation of an invoker that left before the answer runs to its end.
func TestStreamOfAnInvokerThatLeft(t *testing.T) {
	got := new(outcomes)
	body := func(p *fakesup.Process) io.Reader {
		return io.MultiReader(&slowly{ctx: p.Ctx, pause: time.Second, parts: []string{"x"}, err: io.EOF}, io.LimitReader(endless{}, 10<<20))
	}
	program := func(w *world) fakesup.Program {
		stream := streams(got, body, nil)(w)
		return func(p *fakesup.Process) supervisor.Exit { time.Sleep(time.Second); return stream(p) } // a slow initialization
	}
	inWorld(t, program, func(w *world) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if _, err := w.s.Invoke(ctx, &Invocation{ID: "id", Stream: true}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Invoke: %v", err)
		}
		if s := <-got.of; s.n != 10<<20+1 || s.err != nil || s.fin != nil {
			t.Errorf("the runtime saw %+v", s)
		}
		w.wantStates("Initializing Invoking Idle")
	})
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// Readers may return bytes with their error, or none without one.
func TestStreamReaders(t *testing.T) {
	failed := errors.New("failed")
	for name, tt := range map[string]struct {
		r    io.Reader
		want string
		err  error
	}{
		"bytes with EOF":      {iotest.DataErrReader(strings.NewReader("abc")), "abc", nil},
		"one byte each":       {iotest.OneByteReader(strings.NewReader("abc")), "abc", nil},
		"bytes and an error":  {iotest.DataErrReader(io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(failed))), "abc", failed},
		"nothing":             {strings.NewReader(""), "", nil},
		"nothing, many times": {&nothings{n: 100}, "x", nil},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStream(nil, StreamLimits{Bytes: 1000})
			go func() {
				n, err := st.ReadFrom(tt.r)
				if n != int64(len(tt.want)) || !errors.Is(err, tt.err) {
					t.Errorf("%d, %v", n, err)
				}
				st.end(&Result{})
			}()
			if got := collect(st); got != tt.want {
				t.Errorf("%q", got)
			}
		})
	}
}

// nothings reads nothing n times, and then an x.
type nothings struct{ n int }

func (r *nothings) Read(p []byte) (int, error) {
	if r.n--; r.n >= 0 {
		return 0, nil
	}
	return copy(p, "x"), io.EOF
}
