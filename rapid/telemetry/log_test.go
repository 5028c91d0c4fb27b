package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// LOG-20 to LOG-30, LOG-40: each record in both formats.
func TestRecords(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.UTC)
	initTime := Millis(1293830 * time.Microsecond)
	for _, tt := range []struct {
		record     Platform
		text, json string
	}{
		{&InitStart{InitializationType: "on-demand", Phase: InitPhase, RuntimeVersion: "v", RuntimeVersionARN: "arn", InstanceMaxMemory: 1 << 27},
			"INIT_START Runtime Version: v\tRuntime Version ARN: arn\n",
			`{"initializationType":"on-demand","phase":"init","runtimeVersion":"v","runtimeVersionArn":"arn","instanceMaxMemory":134217728}`},
		{&InitReport{InitializationType: "on-demand", Phase: InvokePhase, Metrics: InitMetrics{Millis(1234567 * time.Microsecond)}, Status: Error, ErrorType: "Runtime.ExitError"},
			"INIT_REPORT Init Duration: 1234.57 ms\tPhase: invoke\tStatus: error\tError Type: Runtime.ExitError\n",
			`{"initializationType":"on-demand","phase":"invoke","metrics":{"durationMs":1234.567},"status":"error","errorType":"Runtime.ExitError"}`},
		{&InitReport{InitializationType: "on-demand", Phase: InitPhase, Status: Success}, "",
			`{"initializationType":"on-demand","phase":"init","metrics":{"durationMs":0},"status":"success"}`},
		{&Extension{Name: "e\n\tx", State: "Ready", Events: []string{"INVOKE", "SHUTDOWN"}},
			"EXTENSION\tName: e  x\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\n",
			`{"name":"e\n\tx","state":"Ready","events":["INVOKE","SHUTDOWN"]}`},
		{&Start{RequestID: "id", Version: "$LATEST"}, "START RequestId: id Version: $LATEST\n", `{"requestId":"id","version":"$LATEST"}`},
		{&RuntimeDone{RequestID: "id", Status: Success}, "", `{"requestId":"id","status":"success"}`},
		{&Fault{RequestID: "id", Message: "m", ErrorType: "T"}, "RequestId: id Error: m\nT\n", `"RequestId: id Error: m\nT\n"`},
		{&ImageError{Message: "fork/exec /a: exec format error", Entrypoint: []string{"/a", "-m"}, Cmd: []string{"x\ny"}, WorkingDir: "/w"},
			"IMAGE\tLaunch error: fork/exec /a: exec format error\tEntrypoint: [/a,-m]\tCmd: [x y]\tWorkingDir: [/w]\n", ""},
		{&TimedOut{RequestID: "id", Timeout: 3 * time.Second}, "2026-01-02T03:04:05.678Z id Task timed out after 3.00 seconds\n\n", ""},
		{&End{RequestID: "id"}, "END RequestId: id\n", ""},
		{&Report{RequestID: "id", Status: Success, Metrics: ReportMetrics{Duration: Millis(1049630 * time.Microsecond), BilledMillis: 2344, MemorySizeMB: 128, MaxMemoryUsedMB: 90, InitDuration: &initTime},
			Tracing: NewTracing("Root=1-a-b;Parent=c;Sampled=1")},
			"REPORT RequestId: id\tDuration: 1049.63 ms\tBilled Duration: 2344 ms\tMemory Size: 128 MB\tMax Memory Used: 90 MB\tInit Duration: 1293.83 ms\t\nXRAY TraceId: 1-a-b\tSegmentId: c\tSampled: true\t\n",
			`{"requestId":"id","status":"success","metrics":{"durationMs":1049.63,"billedDurationMs":2344,"memorySizeMB":128,"maxMemoryUsedMB":90,"initDurationMs":1293.83},"tracing":{"type":"X-Amzn-Trace-Id","value":"Root=1-a-b;Parent=c;Sampled=1"}}`},
		{&Report{RequestID: "id", Status: Timeout},
			"REPORT RequestId: id\tDuration: 0.00 ms\tBilled Duration: 0 ms\tMemory Size: 0 MB\tMax Memory Used: 0 MB\tStatus: timeout\t\n",
			`{"requestId":"id","status":"timeout","metrics":{"durationMs":0,"billedDurationMs":0,"memorySizeMB":0,"maxMemoryUsedMB":0}}`},
	} {
		r := Record{Time: at, Source: FromPlatform, Platform: tt.record}
		if got := string(r.Append(nil, Text)); got != tt.text {
			t.Errorf("%T as text\n got %q\nwant %q", tt.record, got, tt.text)
		}
		want := ""
		if tt.json != "" {
			want = `{"time":"2026-01-02T03:04:05.678Z","type":"` + tt.record.Type() + `","record":` + tt.json + "}\n"
		}
		if got := string(r.Append(nil, JSON)); got != want {
			t.Errorf("%T as JSON\n got %s\nwant %s", tt.record, got, want)
		}
	}
}

// LOG-25: 1293.83 + 1049.63 → 2344.
func TestBilled(t *testing.T) {
	if got := Billed((1293830 + 1049630) * time.Microsecond); got != 2344 {
		t.Errorf("%d", got)
	}
	if got := Billed(3 * time.Second); got != 3000 {
		t.Errorf("%d", got)
	}
}

// INV-03, LOG-44: text is cut at a byte, JSON between records.
func TestTail(t *testing.T) {
	for _, format := range []Format{Text, JSON} {
		l := NewLog(LogConfig{Sink: nil, Format: format})
		l.Output(FromFunction, "runtime", Message{Text: []byte("before")})
		l.Begin("id")
		var all bytes.Buffer
		for i := range 3000 {
			line := fmt.Sprintf("line %d", i)
			all.WriteString(line + "\n")
			l.Output(FromFunction, "runtime", Message{Text: []byte(line)})
		}
		got := string(l.End())
		want := all.String()[all.Len()-TailBytes:]
		if format == JSON {
			want = want[strings.Index(want, "\n")+1:]
		}
		if got != want {
			t.Errorf("%s: %d bytes, begins %.20q, want %d, %.20q", format, len(got), got, len(want), want)
		}
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

type slowSink struct {
	gate chan struct{}
	got  []Record
}

func (s *slowSink) Lines(_ context.Context, records []Record) {
	<-s.gate
	s.got = append(s.got, records...)
}

// What comes within a moment goes to the sink together, a flood and the end at once.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &batches{}
		l := NewLog(LogConfig{Sink: sink, Format: Text})
		add := func(text string) { l.Output(FromFunction, "runtime", Message{Text: []byte(text)}) }
		add("a")
		time.Sleep(gather / 2)
		add("b")
		synctest.Wait()
		if sizes, _ := sink.seen(); len(sizes) != 0 {
			t.Errorf("batches of %d records before the time", sizes)
		}
		time.Sleep(gather)
		synctest.Wait()
		for range 3 {
			add(strings.Repeat("x", queueBytes/4))
		}
		synctest.Wait()                     // no time passes
		if _, sum := sink.seen(); sum < 4 { // it may be taken before its third record is there
			t.Errorf("%d records of a flood went out at once, want 2 at least", sum-2)
		}
		add("c")
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if sizes, sum := sink.seen(); len(sizes) != 3 || sizes[0] != 2 || sum != 6 {
			t.Errorf("batches of %d records, want 2, the flood, and the rest", sizes)
		}
	})
}

// batches notes how many records came at once.
type batches struct {
	mu    sync.Mutex
	sizes []int
}

func (b *batches) Lines(_ context.Context, records []Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sizes = append(b.sizes, len(records))
}

// seen returns the sizes, and the number of all records.
func (b *batches) seen() (sizes []int, sum int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, size := range b.sizes {
		sum += size
	}
	return slices.Clone(b.sizes), sum
}

// The memory that a flood took is free once the flood is over.
func TestFloodIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(LogConfig{Sink: &batches{}, Format: Text})
		for range 3 { // both queues have grown
			for range 5000 {
				l.Output(FromFunction, "runtime", Message{})
			}
			time.Sleep(time.Second)
		}
		l.mu.Lock()
		if n := cap(l.queue); n > keepRecords {
			t.Errorf("an idle log has room for %d records, want %d at most", n, keepRecords)
		}
		l.mu.Unlock()
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A slow sink blocks nobody: records are dropped, counted and said.
func TestSlowSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &slowSink{gate: make(chan struct{})}
		l := NewLog(LogConfig{Sink: sink, Format: Text})
		line := bytes.Repeat([]byte("x"), 1000)
		const sent = 5000
		for range sent {
			l.Output(FromFunction, "runtime", Message{Text: line})
		}
		l.Platform(&End{RequestID: "kept"})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close with a stuck sink: %v", err)
		}
		close(sink.gate)
		synctest.Wait()
		var dropped, received int64
		kept := false
		for _, r := range sink.got {
			switch p := r.Platform.(type) {
			case nil:
				received++
			case *LogsDropped:
				dropped += p.Records
				if p.Bytes != p.Records*1000 {
					t.Errorf("%d records of 1000 bytes are %d bytes", p.Records, p.Bytes)
				}
			case *End:
				kept = true
			}
		}
		if dropped == 0 || received+dropped != sent {
			t.Errorf("%d received, %d dropped of %d", received, dropped, sent)
		}
		if !kept {
			t.Error("a flood has pushed out a platform record")
		}
	})
}

// Records carry the invocation in whose time they arrived.
func TestAttribution(t *testing.T) {
	var b bytes.Buffer
	sink := &slowSink{gate: make(chan struct{})}
	close(sink.gate)
	l := NewLog(LogConfig{Sink: sink, Format: Text})
	l.Output(FromExtension, "e", Message{Text: []byte("0")})
	l.Begin("one")
	l.Output(FromFunction, "runtime", Message{Text: []byte("1")})
	_ = l.End()
	l.Output(FromFunction, "runtime", Message{Text: []byte("2")})
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	w := NewWriter(&b, Text)
	for i, want := range []string{"", "one", ""} {
		if got := sink.got[i].RequestID; got != want {
			t.Errorf("line %d belongs to %q, want %q", i, got, want)
		}
	}
	w.Lines(t.Context(), sink.got)
	if b.String() != "0\n1\n2\n" {
		t.Errorf("%q", b.String())
	}
}

// INV-03: the tail that nobody reads is not made, and the next one is.
func TestUnreadTail(t *testing.T) {
	l := NewLog(LogConfig{})
	defer l.Close(t.Context())
	for want, begin := range map[string]func(string){"": l.BeginUnread, "read\n": l.Begin} {
		begin("id")
		l.Output(FromFunction, "runtime", Message{Text: []byte("read")})
		if got := string(l.End()); got != want {
			t.Errorf("tail %q, want %q", got, want)
		}
	}
}

// LOG-09: the longest frame that is accepted reaches a sink that is not slow, also
// behind another.
func TestLongestFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &slowSink{gate: make(chan struct{})}
		close(sink.gate)
		l := NewLog(LogConfig{Sink: sink, Format: Text})
		text := bytes.Repeat([]byte("x"), maxFrame)
		for range 2 {
			l.Output(FromFunction, "runtime", Message{Text: text})
			time.Sleep(time.Second)
		}
		l.Output(FromFunction, "runtime", Message{Text: []byte("short")})
		l.Output(FromFunction, "runtime", Message{Text: text})
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
		var sizes []int
		for _, r := range sink.got {
			if r.Platform != nil {
				t.Errorf("%T", r.Platform)
			}
			sizes = append(sizes, len(r.Text))
		}
		if want := []int{maxFrame, maxFrame, 5, maxFrame}; !slices.Equal(sizes, want) {
			t.Errorf("lines of %d bytes, want %d", sizes, want)
		}
	})
}

// stuckWriter is read by nobody until its gate opens.
type stuckWriter chan struct{}

func (w stuckWriter) Write(p []byte) (int, error) {
	<-w
	return len(p), nil
}

// Logs of sandboxes that have ended leave nothing behind a reader that is stuck, but for
// the one whose lines are being written.
func TestStuckReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(stuckWriter)
		sink := NewWriter(gate, Text)
		const logs = 10
		left := 0
		for range logs {
			l := NewLog(LogConfig{Sink: sink, Format: Text})
			l.Output(FromFunction, "runtime", Message{Text: []byte("line")})
			time.Sleep(time.Second) // its pump is in the sink
			l.Output(FromFunction, "runtime", Message{Text: []byte("line")})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Close: %v", err)
			}
			cancel()
			synctest.Wait()
			select {
			case <-l.idle:
			default:
				left++
			}
		}
		if left != 1 {
			t.Errorf("%d of %d logs still wait for the reader", left, logs)
		}
		close(gate)
	})
}
