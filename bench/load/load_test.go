package load

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestSummarize(t *testing.T) {
	var d []time.Duration
	for i := 100; i >= 1; i-- {
		d = append(d, time.Duration(i)*time.Millisecond)
	}
	want := Summary{N: 100, Min: 1, P50: 50, P90: 90, P99: 99, Max: 100, Mean: 50.5}
	if got := Summarize(d); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if d[0] != 100*time.Millisecond {
		t.Error("the argument was sorted")
	}
	if got := Summarize(nil); got != (Summary{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{7}, 0, 7}, {[]float64{7}, 0.5, 7}, {[]float64{7}, 1, 7},
		{[]float64{1, 2, 3}, 0.5, 2}, {[]float64{1, 2, 3, 4}, 0.5, 2},
		{[]float64{1, 2, 3, 4}, 0.99, 4}, {[]float64{1, 2, 3, 4}, 0.25, 1},
	} {
		if got := Quantile(c.values, c.q); got != c.want {
			t.Errorf("Quantile(%v, %v) = %v, want %v", c.values, c.q, got, c.want)
		}
	}
	if got := Quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("of nothing: %v", got)
	}
	if got := Median([]float64{9, 1, 5}); got != 5 {
		t.Errorf("Median: %v", got)
	}
}

func TestEndpoint(t *testing.T) {
	for target, want := range map[string]string{
		"127.0.0.1:9000":             "http://127.0.0.1:9000" + Path,
		"http://host":                "http://host:80" + Path,
		"http://host:1/own/path?a=b": "http://host:1/own/path?a=b",
		"https://host":               "",
		"http://":                    "",
		"%":                          "",
	} {
		u, err := Endpoint(target)
		if (err != nil) != (want == "") || err == nil && u.String() != want {
			t.Errorf("Endpoint(%q) = %v, %v; want %q", target, u, err, want)
		}
	}
}

// endpoint serves h and returns where.
func endpoint(t *testing.T, h http.HandlerFunc) *url.URL {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	u, err := Endpoint(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestRunSendsWhatItIsTold(t *testing.T) {
	var requests, together, most atomic.Int64
	u := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		now := together.Add(1)
		defer together.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != "event" || r.URL.Path != Path || r.Header.Get("X-Amz-Tenant-Id") != "me" {
			t.Errorf("%s %s: body %q, header %v, %v", r.Method, r.URL, body, r.Header, err)
		}
		io.WriteString(w, "answer")
	})
	r, err := Run(t.Context(), Config{
		URL: u, Body: []byte("event"), Header: http.Header{"X-Amz-Tenant-Id": {"me"}}, Connections: 3, Requests: 100, Warmup: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := requests.Load(); got != 106 {
		t.Errorf("%d requests arrived, want 100 and 3 times 2", got)
	}
	if most.Load() > 3 {
		t.Errorf("%d requests at once, want at most 3", most.Load())
	}
	if len(r.Latencies) != 100 || r.Errors != 0 || r.Bytes != 600 || r.Rate() <= 0 {
		t.Errorf("%d latencies, %d errors, %d bytes, %v/s", len(r.Latencies), r.Errors, r.Bytes, r.Rate())
	}
	for _, d := range r.Latencies {
		if d <= 0 || d > r.Took {
			t.Fatalf("a latency of %v in a run of %v", d, r.Took)
		}
	}
}

func TestRunCountsErrors(t *testing.T) {
	var n atomic.Int64
	u := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 4 {
		case 1:
			w.Header().Set("X-Amz-Function-Error", "Unhandled")
			io.WriteString(w, `{"errorType":"Boom"}`)
		case 2:
			w.WriteHeader(http.StatusTooManyRequests)
		case 3:
			panic(http.ErrAbortHandler) // the connection is made anew
		}
	})
	r, err := Run(t.Context(), Config{URL: u, Requests: 40})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Latencies) != 10 || r.Errors != 30 || r.Err == nil || !strings.Contains(r.Err.Error(), "Boom") {
		t.Errorf("%d measured, %d errors, first %v; want 10, 30, Boom", len(r.Latencies), r.Errors, r.Err)
	}
}

func TestRunEnds(t *testing.T) {
	u := endpoint(t, func(http.ResponseWriter, *http.Request) {})
	r, err := Run(t.Context(), Config{URL: u, Duration: 30 * time.Millisecond, Pause: time.Millisecond, Connections: 2})
	if err != nil || len(r.Latencies) == 0 || r.Took < 20*time.Millisecond {
		t.Errorf("%d requests in %v, %v", len(r.Latencies), r.Took, err)
	}
	if _, err := Run(t.Context(), Config{URL: u}); err == nil {
		t.Error("neither a number nor a time, and no error")
	}
	hung := endpoint(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := Run(ctx, Config{URL: hung, Requests: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if _, err := Run(t.Context(), Config{URL: hung, Requests: 1, Warmup: 1, Timeout: time.Millisecond}); err == nil {
		t.Error("no answer to the warm-up, and no error")
	}
}

func TestSendTellsTheFirstByteFromTheLast(t *testing.T) {
	const size = 3 * keptBytes
	more := make(chan struct{})
	u := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("x", keptBytes))
		w.(http.Flusher).Flush()
		<-more
		io.WriteString(w, strings.Repeat("y", size-keptBytes))
	})
	c := NewClient(u, time.Minute)
	defer c.Close()
	request, err := c.Request(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { close(more) })
	a, err := c.Send(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if a.Bytes != size || string(a.Body) != strings.Repeat("x", keptBytes) {
		t.Errorf("%d bytes, %d of them kept, want %d and %d", a.Bytes, len(a.Body), size, keptBytes)
	}
	if a.First <= 0 || a.Took-a.First < 10*time.Millisecond {
		t.Errorf("first byte after %v, last after %v", a.First, a.Took)
	}
}

// An endpoint that has gone ends the run with the error, after a stated time in which it
// is tried a few times and not as often as the machine can.
func TestRunEndsWhenTheEndpointIsGone(t *testing.T) {
	var n atomic.Int64
	var server *httptest.Server
	var closing sync.Once
	gone := make(chan struct{})
	server = httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if n.Add(1) > 4 {
			closing.Do(func() {
				go func() {
					defer close(gone)
					server.Config.Close() // without waiting for requests
				}()
			})
			<-gone
			panic(http.ErrAbortHandler)
		}
	}))
	u, err := Endpoint(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	const patience = 400 * time.Millisecond
	r, err := Run(t.Context(), Config{URL: u, Requests: 1_000_000, Connections: 2, Patience: patience})
	if err == nil || !strings.Contains(err.Error(), "no answer for 400ms") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Run = %v; want for how long there was no answer, and why", err)
	}
	if len(r.Latencies) > 4 || r.Took < patience {
		t.Errorf("%d answers of at most 4, %v of %v", len(r.Latencies), r.Took, patience)
	}
	if r.Errors < 4 || r.Errors > 2*12 { // the pauses double: 400 ms are 9 of them
		t.Errorf("%d requests failed, want about 9 on each connection", r.Errors)
	}
}

// An endpoint that comes back in time is measured again.
func TestRunGoesOnWhenTheEndpointIsBack(t *testing.T) {
	var n atomic.Int64
	u := endpoint(t, func(http.ResponseWriter, *http.Request) {
		if i := n.Add(1); i > 2 && i <= 6 {
			panic(http.ErrAbortHandler)
		}
	})
	r, err := Run(t.Context(), Config{URL: u, Requests: 10})
	if err != nil || len(r.Latencies) != 6 || r.Errors != 4 {
		t.Errorf("%d measured, %d errors, %v; want 6 and 4", len(r.Latencies), r.Errors, err)
	}
}
