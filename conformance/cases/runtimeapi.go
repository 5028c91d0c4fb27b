package cases

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/suite"
)

// variable returns the value of a variable in a list of K=V, and whether it is there.
func variable(env []string, name string) (string, bool) {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

// runtimeEnv is the environment of the plain runtime, as it noted it at its start.
func runtimeEnv(t *suite.T) []string { return t.First(t.Journal().By("runtime"), "env").List }

// transport is section 1.1.
var transport = []suite.Case{
	{ID: "RT-01", Setup: plain, Run: func(t *suite.T) {
		api, _ := variable(runtimeEnv(t), "AWS_LAMBDA_RUNTIME_API")
		if strings.Count(api, ":") != 1 || strings.Contains(api, "/") {
			t.Errorf("AWS_LAMBDA_RUNTIME_API is %q, want host:port with one colon", api)
		}
	}},
	{ID: "RT-02", Setup: plain, Run: func(t *suite.T) {
		api, _ := variable(runtimeEnv(t), "AWS_LAMBDA_RUNTIME_API")
		if _, err := netip.ParseAddrPort(api); err != nil {
			t.Errorf("AWS_LAMBDA_RUNTIME_API is %q: %v", api, err)
		}
		_, j := t.Play(step{Op: "raw", Data: "GET " + pingPath + " HTTP/1.1\r\nHost: api\r\n\r\n", MS: 5000})
		if e := t.Status(j, "raw", 200); strings.EqualFold(e.Headers["Connection"], "close") {
			t.Errorf("the API does not keep connections alive")
		}
	}},
	{ID: "RT-03", Setup: plain, Run: func(t *suite.T) {
		if first := t.First(t.Journal().By("runtime"), "first"); first.Status != 200 {
			t.Errorf("the first request of the process: status %d %s", first.Status, first.Error)
		}
	}},
	{ID: "RT-05", Setup: plain, Run: func(t *suite.T) {
		chunked := answer("chunked", "")
		chunked.Chunks = []chunk{{Data: `{"a"`}, {Data: `:1}`}}
		a, j := t.PlayAnswered(chunked)
		t.Status(j, "chunked", 202)
		suite.Equal(t, "the answer", string(a.Body), `{"a":1}`)
		_, j = t.PlayAnswered(answer("long header", "{}", "Lambda-Runtime-Function-XRay-Error-Cause", strings.Repeat("x", 1<<20-2048)))
		t.Status(j, "long header", 202)
	}},
	{ID: "RT-06", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play(post("wrong", runtimeBase+"invocation/"+unknownID+"/response", "{}"))
		e := t.Status(j, "wrong", 400)
		suite.Equal(t, "Content-Type", e.Headers["Content-Type"], "application/json")
		if ok, _ := regexp.MatchString(`^\{"errorMessage":"[^"]+","errorType":"[^"]+"\}\n$`, e.Text); !ok {
			t.Errorf("error body %q", e.Text)
		}
	}},
	{ID: "RT-07", Setup: plain, Run: func(t *suite.T) {
		for _, s := range steps(answer("post", "{}"), fault("post", `{"errorType":"E"}`)) {
			_, j := t.PlayAnswered(s)
			e := t.Status(j, "post", 202)
			suite.Equal(t, "body", strings.TrimSpace(e.Text), `{"status":"OK"}`)
			suite.Equal(t, "Content-Type", e.Headers["Content-Type"], "application/json")
		}
	}},
	{ID: "RT-08", Setup: plain, Run: func(t *suite.T) {
		a, j := t.Play(get("ping", pingPath))
		suite.Equal(t, "body of ping", t.Status(j, "ping", 200).Text, "pong")
		suite.Equal(t, "status after ping", a.Status, 200)
	}},
	{ID: "RT-09", Setup: plain, Run: func(t *suite.T) {
		a, j := t.Play(get("no path", runtimeBase+"nowhere"), post("no method", nextPath, ""), get("no method 2", responsePath))
		t.Status(j, "no path", 404)
		t.Status(j, "no method", 405)
		t.Status(j, "no method 2", 405)
		suite.Equal(t, "function error after it", a.Header.Get("X-Amz-Function-Error"), "")
	}},
	{ID: "RT-10", Setup: plain, Run: func(t *suite.T) {
		a, j := t.PlayAnswered(answer("empty", `{"a":1}`, "Lambda-Runtime-Function-XRay-Error-Cause", "",
			"Lambda-Runtime-Function-Response-Mode", "", "Lambda-Runtime-Invocation-Id", ""))
		t.Status(j, "empty", 202)
		suite.Equal(t, "answer", string(a.Body), `{"a":1}`)
	}},
}

// next is section 1.3.
var next = []suite.Case{
	{ID: "RT-12", Setup: plain, Run: func(t *suite.T) {
		for _, body := range []string{"{ \"a\" :\t[1,2]}\n", `"é"`, strings.Repeat(" ", 100_000) + "1"} {
			suite.Equal(t, "echo", string(t.Invoke(body).Body), body)
		}
		_, j := t.Play()
		e := t.One(j, "next")
		suite.Equal(t, "Content-Length", e.Headers["Content-Length"], strconv.FormatInt(e.N, 10))
	}},
	{ID: "RT-13", Setup: plain, Run: func(t *suite.T) {
		a, j := t.Play()
		suite.Equal(t, "id of next", t.One(j, "next").Headers["Lambda-Runtime-Aws-Request-Id"], a.ID())
		b, _ := t.Play()
		if a.ID() == "" || a.ID() == b.ID() {
			t.Errorf("ids %q and %q of two invocations", a.ID(), b.ID())
		}
	}},
	{ID: "RT-14", Setup: plain, Run: func(t *suite.T) {
		before := time.Now()
		_, j := t.Play()
		e := t.One(j, "next")
		ms, err := strconv.ParseInt(e.Headers["Lambda-Runtime-Deadline-Ms"], 10, 64)
		if err != nil {
			t.Fatalf("deadline: %v", err)
		}
		deadline := time.UnixMilli(ms)
		if least, most := before.Add(t.Timeout()-time.Millisecond), time.UnixMicro(e.At).Add(t.Timeout()); deadline.Before(least) || deadline.After(most) {
			t.Errorf("deadline %v, want %v to %v", deadline, least, most)
		}
	}},
	{ID: "RT-15", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play()
		arn := t.One(j, "next").Headers["Lambda-Runtime-Invoked-Function-Arn"]
		if ok, _ := regexp.MatchString(`^arn:aws[a-z-]*:lambda:[a-z0-9-]+:\d{12}:function:[A-Za-z0-9-_]+(:[^:]+)?$`, arn); !ok {
			t.Errorf("ARN %q", arn)
		}
	}},
	{ID: "RT-16", Setup: plain, Run: func(t *suite.T) {
		const trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
		payload, play := t.Event(false)
		t.Invoke(payload, "X-Amzn-Trace-Id", trace)
		suite.Equal(t, "trace", t.One(t.Journal().Of(play), "next").Headers["Lambda-Runtime-Trace-Id"], trace)
		_, j := t.Play() // the platform may trace by itself
		if v, there := t.One(j, "next").Headers["Lambda-Runtime-Trace-Id"]; there && !strings.HasPrefix(v, "Root=1-") {
			t.Errorf("trace %q of a caller who gave none", v)
		}
	}},
	{ID: "RT-17", Setup: plain, Run: func(t *suite.T) {
		payload, play := t.Event(false)
		t.Invoke(payload, "X-Amz-Client-Context", "eyJjdXN0b20iOnsiYSI6ImIifX0=")
		suite.Equal(t, "client context", t.One(t.Journal().Of(play), "next").Headers["Lambda-Runtime-Client-Context"], `{"custom":{"a":"b"}}`)
		_, j := t.Play()
		absent(t, t.One(j, "next").Headers, "Lambda-Runtime-Client-Context")
	}},
	{ID: "RT-18", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play()
		absent(t, t.One(j, "next").Headers, "Lambda-Runtime-Cognito-Identity")
	}},
	{ID: "RT-19", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play()
		absent(t, t.One(j, "next").Headers, "Lambda-Runtime-Aws-Tenant-Id")
	}},
	{ID: "RT-20", Setup: plain, Run: func(t *suite.T) {
		for _, kind := range []string{"application/x-www-form-urlencoded", "", "application/octet-stream", "application/json; charset=utf-8", "text/plain"} {
			payload, play := t.Event(false)
			t.Invoke(payload, "Content-Type", kind)
			suite.Equal(t, "the runtime's type after the caller's "+kind, t.One(t.Journal().Of(play), "next").Headers["Content-Type"], "application/json")
		}
	}},
	{ID: "RT-21", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play()
		for k, v := range t.One(j, "next").Headers {
			if v == "" {
				t.Errorf("header %s has no value", k)
			}
		}
	}},
	{ID: "RT-22", Setup: plain, Run: func(t *suite.T) {
		seen := map[string]bool{"": true}
		for range 2 { // the caller proposes the same request id twice: two attempts
			payload, play := t.Event(false)
			t.Invoke(payload, "X-Amzn-RequestId", "8f5b1c1e-5f3e-4b4e-9d7b-0a1b2c3d4e5f")
			nonce := t.One(t.Journal().Of(play), "next").Headers["Lambda-Runtime-Invocation-Id"]
			if seen[nonce] {
				t.Errorf("invocation id %q is missing or not fresh", nonce)
			}
			seen[nonce] = true
		}
	}},
	{ID: "RT-23", Setup: plain, Run: func(t *suite.T) {
		before := len(t.Journal().Named("next"))
		a := t.Invoke(`"` + strings.Repeat("x", 6_291_557) + `"`)
		suite.Equal(t, "status", a.Status, 413)
		suite.Equal(t, "events that came", len(t.Journal().Named("next")), before)
	}},
	{ID: "RT-25", Setup: plain, Run: func(t *suite.T) {
		t.PlayAnswered(answer("r", "{}"), background(get("dead", nextPath)), wait("dead", 100), cancel("dead"))
		suite.Equal(t, "answer after a waiter has gone", string(t.Invoke(`{"a":1}`).Body), `{"a":1}`)
	}},
	{ID: "RT-26", Setup: plain, Run: func(t *suite.T) {
		payload, play := t.Event(false, get("again", nextPath), get("again", nextPath))
		a := t.Invoke(payload, "X-Amz-Log-Type", "Tail")
		j := t.Journal().Of(play)
		again := j.Named("again")
		if len(again) != 2 {
			t.Fatalf("%d entries, want 2", len(again))
		}
		first := t.One(j, "next")
		for _, e := range again {
			suite.Equal(t, "event", e.Text, payload)
			for k, v := range first.Headers {
				if k != "Date" {
					suite.Equal(t, k, e.Headers[k], v)
				}
			}
		}
		if n := strings.Count(a.Tail(), "START RequestId"); a.Tail() != "" && n != 1 {
			t.Errorf("%d START lines", n)
		}
	}},
	{ID: "RT-27", Setup: busy, Run: func(t *suite.T) { // its extension leaves both the time to wait
		first, play := t.Event(true, answer("r1", "1"), background(get("n1", nextPath)), background(get("n2", nextPath)),
			wait("n1", 1000), wait("n2", 300), answer("r2", "2"), cancel("n1"), cancel("n2"))
		t.Invoke(first)
		suite.Equal(t, "second answer", string(t.Invoke(`"to one of the waiters"`).Body), "2")
		j := t.Journal().Of(play)
		if n := t.One(j, "wait n1").N + t.One(j, "wait n2").N; n != 1 {
			t.Errorf("one dispatch woke %d waiters", n)
		}
	}},
}

// absent wants a header not to be there.
func absent(t *suite.T, h map[string]string, name string) {
	if v, there := h[name]; there {
		t.Errorf("%s is there: %q", name, v)
	}
}
