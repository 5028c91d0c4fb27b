package cases

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

// invoke is section 5.1.
var invoke = []suite.Case{
	{ID: "INV-01", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play()
		arn := strings.TrimSuffix(t.One(j, "next").Headers["Lambda-Runtime-Invoked-Function-Arn"], ":$LATEST")
		part := strings.SplitN(arn, ":", 5)
		if len(part) != 5 {
			t.Fatalf("ARN %q", arn)
		}
		for _, name := range []string{"function", "function:$LATEST", "function%3A%24LATEST", "function:function", part[4], arn, strings.ReplaceAll(arn, ":", "%3A")} {
			suite.Equal(t, "status for "+name, t.Request("POST", "/2015-03-31/functions/"+name+"/invocations", []byte("1")).Status, 200)
		}
		suite.Equal(t, "status with a qualifier", t.Request("POST", suite.InvokePath+"?Qualifier=$LATEST", []byte("1")).Status, 200)
		other := strings.SplitN(arn, ":", 7)
		other[3] = "xx-nowhere-9"
		for _, name := range []string{"no.name", strings.Repeat("x", 65), "function:nobody", "function:nosuchversion", strings.Join(other, ":")} {
			refusal(t, t.Request("POST", "/2015-03-31/functions/"+name+"/invocations", []byte("1")), 404, "ResourceNotFoundException")
		}
	}},
	{ID: "INV-02", Setup: plain, Run: func(t *suite.T) {
		before := len(t.Journal().Named("next"))
		dry := t.Invoke(`"dry"`, "X-Amz-Invocation-Type", "DryRun")
		suite.Equal(t, "DryRun", fmt.Sprint(dry.Status, len(dry.Body)), "204 0")
		suite.Equal(t, "events after DryRun", len(t.Journal().Named("next")), before)
		suite.Equal(t, "RequestResponse", t.Invoke("1", "X-Amz-Invocation-Type", "RequestResponse").Status, 200)
		t.Quiet()
		event := t.Invoke(`"event"`, "X-Amz-Invocation-Type", "Event")
		suite.Equal(t, "Event", fmt.Sprint(event.Status, len(event.Body)), "202 0")
		t.WaitLog("END RequestId: " + event.ID())
		suite.Equal(t, "events after Event", len(t.Journal().Named("next")), before+3)
	}},
	{ID: "INV-03", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(false, print(strings.Repeat("0123456789abcde\n", 400)))
		a := t.Invoke(payload, "X-Amz-Log-Type", "Tail")
		raw, err := base64.StdEncoding.DecodeString(a.Header.Get("X-Amz-Log-Result"))
		if err != nil || len(raw) != 4096 {
			t.Errorf("tail of %d bytes, %v; want 4096", len(raw), err)
		}
		t.Contains("tail", string(raw), "END RequestId: "+a.ID()+"\nREPORT RequestId: "+a.ID())
		b := t.Invoke("1", "X-Amz-Log-Type", "Tail")
		if !strings.HasPrefix(b.Tail(), "START RequestId: "+b.ID()) {
			t.Errorf("tail %q does not begin with START", b.Tail())
		}
		for _, c := range []*suite.Answer{t.Invoke("1"), t.Invoke("1", "X-Amz-Log-Type", "None")} {
			suite.Equal(t, "tail without being asked for", c.Header.Get("X-Amz-Log-Result"), "")
		}
	}},
	{ID: "INV-04", Setup: plain, Run: func(t *suite.T) {
		long := base64.StdEncoding.EncodeToString([]byte(`{"custom":{"a":"` + strings.Repeat("x", 3000) + `"}}`))
		refusal(t, t.Invoke("1", "X-Amz-Client-Context", "{no base64}"), 400, "InvalidRequestContentException")
		refusal(t, t.Invoke("1", "X-Amz-Client-Context", long), 400, "InvalidRequestContentException")
	}},
	{ID: "INV-05", Setup: plain, Run: func(t *suite.T) {
		refusal(t, t.Invoke("1", "X-Amz-Tenant-Id", "blue"), 400, "InvalidParameterValueException")
	}},
	{ID: "INV-06", Setup: plain, Run: func(t *suite.T) {
		a, j := t.Play()
		suite.Equal(t, "X-Amzn-RequestId", a.ID(), t.One(j, "next").Headers["Lambda-Runtime-Aws-Request-Id"])
		suite.Equal(t, "X-Amz-Executed-Version", a.Header.Get("X-Amz-Executed-Version"), "$LATEST")
		suite.Equal(t, "Content-Type", a.Header.Get("Content-Type"), "application/json")
		_, there := a.Header["X-Amz-Function-Error"]
		suite.Equal(t, "X-Amz-Function-Error is there", there, false)
	}},
	{ID: "INV-07", Setup: plain, Run: func(t *suite.T) {
		const id = "3c7f1f0a-52d9-4c6e-8a3a-2f5d0d9f2b11"
		a := t.Invoke("1", "X-Amzn-RequestId", id)
		suite.Equal(t, "id", a.ID(), id)
		refusal(t, t.Invoke("1", "X-Amzn-RequestId", "1234"), 400, "InvalidRequestContentException")
	}},
	{ID: "INV-08", Setup: plain, Run: func(t *suite.T) {
		const limit = 6_291_456
		suite.Equal(t, "status at the limit", t.Invoke(`"`+strings.Repeat("x", limit-2)+`"`).Status, 200)
		a := t.Invoke(`"` + strings.Repeat("x", limit-1) + `"`)
		refusal(t, a, 413, "RequestTooLargeException")
		t.Contains("body", string(a.Body), "6291457 byte payload is too large for the RequestResponse invocation type (limit 6291456 bytes)")
		refusal(t, t.Invoke(`"`+strings.Repeat("x", 1<<20)+`"`, "X-Amz-Invocation-Type", "Event"), 413, "RequestTooLargeException")
	}},
	{ID: "INV-09", Setup: plain, Run: func(t *suite.T) {
		for _, payload := range []string{"hello", `{"a":`, "{\"a\":\"\xff\"}"} { // the last is not UTF-8
			a := t.Invoke(payload)
			refusal(t, a, 400, "InvalidRequestContentException")
			t.Contains("body", string(a.Body), "Could not parse request body into json: Could not parse payload into json: ")
		}
		suite.Equal(t, "event of an empty payload", string(t.Invoke("").Body), "{}")
	}},
	{ID: "INV-10", Setup: plain, Run: func(t *suite.T) {
		a, _ := t.PlayAnswered(fault("e", customError))
		suite.Equal(t, "status", a.Status, 200)
		suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "Unhandled")
	}},
	{ID: "INV-11", Setup: plain, Run: func(t *suite.T) {
		a, _ := t.PlayAnswered(fault("e", customError, "Content-Type", "application/json"))
		suite.Equal(t, "answer", string(a.Body), customError)
	}},
	{ID: "INV-12", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, exit(1))
		a := t.Invoke(payload)
		suite.Equal(t, "answer", string(a.Body), `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: `+a.ID()+` Error: Runtime exited with error: exit status 1"}`)
	}},
	{ID: "INV-13", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, sleep(60_000))
		a := t.Invoke(payload)
		t.FunctionError(a, "Sandbox.Timedout", "RequestId: <id> Error: Task timed out after 3.00 seconds")
		if most := t.Timeout() + t.Scaled(2*time.Second); a.Took < t.Timeout() || a.Took > most {
			t.Errorf("answered after %v, want %v to %v", a.Took, t.Timeout(), most)
		}
	}},
	{ID: "INV-14", Setup: &suite.Setup{Name: "little memory", Memory: 128, Timeout: 20}, Run: func(t *suite.T) {
		payload, _ := t.Event(false, step{Op: "alloc", N: 512})
		a := t.Invoke(payload, tail, asTail)
		t.FunctionError(a, "Runtime.OutOfMemory", "")
		t.Contains("answer", string(a.Body), "Error: Runtime exited with error: signal: killed")
		suite.Equal(t, "error type of REPORT", reported(t, a)[8], "Runtime.OutOfMemory")
		suite.Equal(t, "answer after it", string(t.Invoke("1").Body), "1")
	}},
	{ID: "INV-15", Setup: plain, Run: func(t *suite.T) {
		t.Quiet()
		payload, play := t.Event(true, fault("e", customError))
		a := t.Invoke(payload, "X-Amz-Invocation-Type", "Event")
		suite.Equal(t, "status of an Event that fails", a.Status, 202)
		t.WaitLog("END RequestId: " + a.ID())
		first := t.First(t.Journal().Of(play), "e") // later ones are retries
		t.Status(script.Entries{first}, "e", 202)
	}},
}

// refusal wants an error of the service in the form of INV-16.
func refusal(t *suite.T, a *suite.Answer, status int, exception string) {
	if a.Status != status || a.Header.Get("X-Amzn-Errortype") != exception {
		t.Errorf("status %d, x-amzn-errortype %q; want %d %s", a.Status, a.Header.Get("X-Amzn-Errortype"), status, exception)
	}
	var body map[string]any
	if err := json.Unmarshal(a.Body, &body); err != nil {
		t.Errorf("body %s: %v", suite.Short(a.Body), err)
	}
	if k := body["Type"]; k != "User" && k != "Service" {
		t.Errorf("Type in the body is %v", k)
	}
}

// invokeErrors is section 5.2.
var invokeErrors = []suite.Case{
	{ID: "INV-16", Setup: plain, Run: func(t *suite.T) {
		a := t.Invoke("hello")
		t.Contains("body", string(a.Body), `"message":`)
		b := t.Request("POST", "/2015-03-31/functions/nobody/invocations", []byte("1"))
		t.Contains("body", string(b.Body), `"Message":`)
	}},
	{ID: "INV-17", Setup: plain, Run: func(t *suite.T) {
		refusal(t, t.Invoke("1", "X-Amz-Invocation-Type", "Sometimes"), 400, "InvalidParameterValueException")
		refusal(t, t.Invoke("{", "X-Amz-Invocation-Type", "RequestResponse"), 400, "InvalidRequestContentException")
		refusal(t, t.Request("POST", "/2015-03-31/functions/function:$LATEST/invocations?Qualifier=1", []byte("1")), 400, "InvalidParameterValueException")
		for _, path := range []string{"my-function!/invocations", "function:/invocations", "function/invocations?Qualifier=invalid!",
			"function/invocations?Qualifier=" + strings.Repeat("q", 129), "invalid-account:function:my-function/invocations",
			"arn:aws:lambda:invalid-region:111111111111:function:my-function/invocations", "arn:aws:lambda:us-east-1::function:my-function/invocations",
			"arn:aws:ec2:us-east-1:111111111111:instance:i-1234567890abcdef0/invocations", "function:my-function:$LATEST:extra/invocations",
			"arn:aws:lambda:us-east-1:111111111111:function:my-function:$LATES/invocations"} {
			a := t.Request("POST", "/2015-03-31/functions/"+path, []byte("1"))
			refusal(t, a, 400, "ValidationException")
			t.Contains("body", string(a.Body), "1 validation error detected: Value '")
		}
	}},
	{ID: "INV-19", Setup: plain, Run: func(t *suite.T) {
		a := t.Request("POST", "/2015-03-31/functions/nobody/invocations", []byte("1"))
		refusal(t, a, 404, "ResourceNotFoundException")
		t.Contains("body", string(a.Body), "Function not found: arn:aws")
		t.Contains("body", string(a.Body), `:function:nobody:$LATEST"`)
	}},
	{ID: "INV-22", Setup: plain, Run: func(t *suite.T) {
		refusal(t, t.Invoke("1", "Content-Encoding", "gzip"), 415, "UnsupportedMediaTypeException")
	}},
	{ID: "INV-23", Setup: plain, Run: func(t *suite.T) { throttled(t) }},
	{ID: "INV-26", Setup: plain, Run: func(t *suite.T) {
		if a := throttled(t); a != nil {
			var body struct{ Reason string }
			if err := json.Unmarshal(a.Body, &body); err != nil || !strings.HasSuffix(body.Reason, "LimitExceeded") && !strings.HasSuffix(body.Reason, "RateExceeded") {
				t.Errorf("Reason %q, %v", body.Reason, err)
			}
		}
	}},
	{ID: "INV-34", Setup: plain, Run: func(t *suite.T) {
		t.Quiet()
		a := t.Request("POST", "/2014-11-13/functions/function/invoke-async/", []byte("1"))
		suite.Equal(t, "status", a.Status, http.StatusAccepted)
		suite.Equal(t, "body", strings.TrimSpace(string(a.Body)), `{"Status":202}`)
		t.Quiet()
	}},
}

// throttled invokes a second time while the environment is busy, and wants to be told
// so.
func throttled(t *suite.T) *suite.Answer {
	t.Quiet()
	payload, _ := t.Event(false, sleep(1500))
	answers := []<-chan *suite.Answer{t.Background(payload), t.Background(payload)}
	var refused, taken *suite.Answer
	for _, c := range answers {
		if a := <-c; a != nil && a.Status == 429 {
			refused = a
		} else {
			taken = a
		}
	}
	if refused == nil || taken == nil {
		t.Errorf("two invocations at once of a function with one environment: want one of them refused")
		return nil
	}
	refusal(t, refused, 429, "TooManyRequestsException")
	if refused.Header.Get("Retry-After") == "" || !strings.Contains(string(refused.Body), `"Reason":`) {
		t.Errorf("Retry-After %q, body %s", refused.Header.Get("Retry-After"), refused.Body)
	}
	return refused
}
