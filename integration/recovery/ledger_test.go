//go:build integration

package recovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// outcomes are how an invocation of the ledger may go, with how often of 100,000 it
// does.
var outcomes = []struct {
	name   string
	weight int
	event  func(id string) any
	report string // what REPORT has after its figures
	body   string // part of the answer; "" is the payload itself
}{
	{"echo", 0, func(id string) any { return id }, "", ""}, // all the others
	{"error", 10000, func(string) any {
		return harness.Answering(script.Step{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/{id}/error", Data: `{"errorType":"Mine"}`})
	}, "", `{"errorType":"Mine"}`},
	{"large", 500, func(id string) any { return id + strings.Repeat("x", 300<<10) }, "", ""},
	{"stream", 5000, func(id string) any {
		return harness.Answering(harness.Streaming(0, "one ", id))
	}, "", "one "},
	{"stream fails", 2000, func(id string) any {
		s := harness.Streaming(0, "one ", id)
		s.Trailers = map[string]string{"Lambda-Runtime-Function-Error-Type": "Runtime.Mid", "Lambda-Runtime-Function-Error-Body": "e30="}
		return harness.Answering(s)
	}, "", "one "},
	{"background", 3000, func(id string) any { return id }, "", ""},
	{"client leaves", 500, func(string) any { return script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 20}}} }, "", ""},
	{"exit", 200, func(string) any { return script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 3}}} },
		"Status: error\tError Type: Runtime.ExitError\t", "exit status 3"},
	{"out of memory", 20, func(string) any { return script.Event{Report: true, Steps: []script.Step{{Op: "alloc", N: 1500}}} },
		"Status: error\tError Type: Runtime.OutOfMemory\t", "signal: killed: out of memory"},
	{"timeout", 4, func(string) any { return script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 60000}}} },
		"Status: timeout\t", "Task timed out"},
}

// ledger holds what became of every invocation.
type ledger struct {
	d      *harness.Daemon
	client *http.Client
	done   atomic.Int64

	mu      sync.Mutex
	outcome map[string]int  // by request id, of those that were accepted
	unsure  map[string]bool // the client left: it may not have been taken
}

// SEC-71: whatever becomes of SOAK_INVOCATIONS, each has exactly one answer,
// START, END and REPORT, and these agree; nothing is there of an id that was refused or
// never sent. `make ledger` makes 100,000.
func TestLedger(t *testing.T) {
	const parallel = 4
	n := int(soakNumber(t, "SOAK_INVOCATIONS", uint64(harness.Rounds(t, harness.Rounds(t, 30000))))) // a hundredth in an emulated machine
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d invocations", seed, n)
	// A machine that is busy needs seconds to touch a gigabyte.
	d := harness.Start(t, "--memory=1024", "--timeout=20s", "--concurrency=4", "--pool=2", harness.Function(t))
	l := &ledger{d: d, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: parallel}},
		outcome: map[string]int{}, unsure: map[string]bool{}}
	var wg sync.WaitGroup
	began := time.Now()
	for worker := range parallel {
		random := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for range n / parallel {
				l.one(draw(random))
				if done := l.done.Add(1); done%10000 == 0 {
					t.Logf("%d of %d after %v", done, n, time.Since(began).Round(time.Second))
				}
			}
		})
	}
	wg.Wait()
	l.client.CloseIdleConnections()
	d.Stop() // drains what runs in the background
	l.check()
}

// draw chooses an outcome.
func draw(random *rand.Rand) int {
	x := random.IntN(100000)
	for i, o := range outcomes {
		if x < o.weight {
			return i
		}
		x -= o.weight
	}
	return 0
}

// one makes an invocation of that outcome, again while every sandbox is busy.
func (l *ledger) one(kind int) {
	o := &outcomes[kind]
	for {
		id := uuid.NewString()
		status, text, err := l.send(o.name, id, script.Encode(o.event(id)))
		switch {
		case status == http.StatusTooManyRequests:
			time.Sleep(2 * time.Millisecond) // as a client does
			continue
		case o.name == "client leaves" && errors.Is(err, context.DeadlineExceeded):
			l.mu.Lock()
			l.unsure[id] = true
			l.mu.Unlock()
		case err != nil:
			l.d.T.Errorf("%s %s: %v", o.name, id, err)
		case o.name == "background":
			if status != http.StatusAccepted {
				l.d.T.Errorf("%s %s: status %d %.200s", o.name, id, status, text)
			}
		case status != http.StatusOK || o.body != "" && !strings.Contains(text, o.body) ||
			o.body == "" && o.name != "client leaves" && text != script.Encode(o.event(id)) ||
			strings.HasPrefix(o.name, "stream") && !strings.Contains(text, id):
			l.d.T.Errorf("%s %s: status %d %.200s", o.name, id, status, text)
		}
		l.mu.Lock()
		l.outcome[id] = kind
		l.mu.Unlock()
		return
	}
}

// send makes one request with an id of its own and returns the whole answer; of a
// stream, its chunks.
func (l *ledger) send(kind, id, payload string) (status int, text string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience)
	defer cancel()
	path := "/2015-03-31/functions/function/invocations"
	header := http.Header{"X-Amzn-Requestid": {id}}
	switch kind {
	case "stream", "stream fails":
		path = "/2021-11-15/functions/function/response-streaming-invocations"
	case "background":
		header.Set("X-Amz-Invocation-Type", "Event")
	case "client leaves":
		ctx, cancel = context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+l.d.Addr+path, strings.NewReader(payload))
	if err != nil {
		return 0, "", err
	}
	req.Header = header
	resp, err := l.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "stream") {
		return resp.StatusCode, string(body), err
	}
	decoder, rest := eventstream.NewDecoder(), bytes.NewReader(body)
	for end := 0; ; {
		m, err := decoder.Decode(rest, nil)
		if errors.Is(err, io.EOF) && end == 1 {
			return resp.StatusCode, text, nil
		}
		if err != nil {
			return resp.StatusCode, text, fmt.Errorf("%d times InvokeComplete, then %w", end, err)
		}
		if m.Headers.Get(":event-type").String() == "InvokeComplete" {
			end++
			var c struct{ ErrorCode string }
			if err := json.Unmarshal(m.Payload, &c); err != nil || (c.ErrorCode != "") != (kind == "stream fails") {
				return resp.StatusCode, text, fmt.Errorf("InvokeComplete %s: %w", m.Payload, err)
			}
			continue
		}
		text += string(m.Payload)
	}
}

// check reads the daemon's log and compares.
func (l *ledger) check() {
	t := l.d.T
	type lines struct{ start, end, report int }
	seen := map[string]*lines{}
	entry := func(rest string) *lines {
		id, _, _ := strings.Cut(strings.ReplaceAll(rest, "\t", " "), " ")
		if seen[id] == nil {
			seen[id] = &lines{}
		}
		return seen[id]
	}
	wrong := 0
	complain := func(format string, args ...any) {
		if wrong++; wrong <= 20 {
			t.Errorf(format, args...)
		}
	}
	for line := range strings.Lines(l.d.Log.Text()) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "START RequestId: "); ok {
			entry(rest).start++
		} else if rest, ok := strings.CutPrefix(line, "END RequestId: "); ok {
			entry(rest).end++
		} else if rest, ok := strings.CutPrefix(line, "REPORT RequestId: "); ok {
			entry(rest).report++
			id, _, _ := strings.Cut(rest, "\t")
			l.mu.Lock()
			kind, known := l.outcome[id]
			l.mu.Unlock()
			if !known {
				complain("REPORT of an invocation that nobody made or that was refused: %s", line)
				continue
			}
			want := outcomes[kind].report
			if status := strings.Contains(line, "Status: "); status != (want != "") || !strings.HasSuffix(line, "\t"+want) && want != "" {
				complain("%s: %q, want it to end with %q", outcomes[kind].name, line, want)
			}
		}
		if strings.Contains(line, "LOGS_DROPPED") {
			complain("%s", line)
		}
	}
	count := make([]int, len(outcomes))
	for id, kind := range l.outcome {
		count[kind]++
		e := seen[id]
		if e == nil && l.unsure[id] {
			continue
		}
		if e == nil || *e != (lines{1, 1, 1}) {
			complain("%s %s: %+v, want one START, END and REPORT", outcomes[kind].name, id, e)
		}
	}
	for id := range seen {
		if _, known := l.outcome[id]; !known {
			complain("records of %s, which nobody made or which was refused", id)
		}
	}
	for i, o := range outcomes {
		t.Logf("%6d %s", count[i], o.name)
	}
	if wrong > 20 {
		t.Errorf("%d complaints in all", wrong)
	}
}
