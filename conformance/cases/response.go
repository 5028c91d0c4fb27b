package cases

import (
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

type chunk = script.Chunk

const (
	sizeLimit  = 6_291_556 // RT-34
	modeHeader = "Lambda-Runtime-Function-Response-Mode"
)

// letters is a body of n letters.
func letters(s step, n int64) step {
	s.N = n
	return s
}

// truncated is a response whose body ends before it should.
func truncated(name, head, part string) step {
	return step{Op: "raw", Name: name, Method: "end", MS: 5000, Data: "POST " + responsePath + " HTTP/1.1\r\nHost: api\r\n" + head + "\r\n\r\n" + part}
}

// response is section 1.4.
var response = []suite.Case{
	{ID: "RT-28", Setup: plain, Run: func(t *suite.T) {
		_, j := t.PlayAnswered(
			post("wrong id, wrong mode", runtimeBase+"invocation/"+unknownID+"/response", "{}", modeHeader, "wrong"),
			answer("good", "{}"),
			answer("wrong state, wrong mode", "{}", modeHeader, "wrong"))
		t.Status(j, "wrong id, wrong mode", 400, `"InvalidRequestID"`, "Invalid request ID")
		t.Status(j, "good", 202)
		t.Status(j, "wrong state, wrong mode", 403, `"InvalidStateTransition"`)
	}},
	{ID: "RT-29", Setup: plain, Run: func(t *suite.T) {
		_, j := t.PlayAnswered(answer("first", "1"), answer("second", "2"))
		t.Status(j, "first", 202)
		t.Status(j, "second", 403)
		_, j = t.Play(post("late", runtimeBase+"invocation/{previous}/response", "{}"))
		t.Status(j, "late", 400, "InvalidRequestID")
	}},
	{ID: "RT-30", Setup: plain, Run: func(t *suite.T) {
		_, j := t.PlayAnswered(answer("first", "1"), answer("second", "2"))
		t.Status(j, "second", 403, "State transition from RuntimeResponseSentState to InvocationResponse failed for runtime. Error: State transition is not allowed")
	}},
	{ID: "RT-31", Setup: plain, Run: func(t *suite.T) {
		const body = "<p>no JSON \x00\x01 é</p>"
		a, j := t.PlayAnswered(answer("r", body, "Content-Type", "text/x-mine; charset=utf-8"))
		t.Status(j, "r", 202)
		suite.Equal(t, "answer", string(a.Body), body)
		suite.Equal(t, "Content-Type", a.Header.Get("Content-Type"), "text/x-mine; charset=utf-8")
		suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "")
	}},
	{ID: "RT-32", Setup: plain, Run: func(t *suite.T) {
		payload, play := t.Event(true, answer("r", "1"), sleep(500))
		a := t.Invoke(payload)
		answered := time.Now().UnixMicro()
		b := t.Invoke("2")
		t.Quiet()
		if woke := t.One(t.Journal().Of(play), "sleep").At; answered > woke {
			t.Errorf("the answer came %d µs after the runtime had slept for 500 ms, though it was posted before", answered-woke)
		}
		if b.Status == 200 && a.Took+b.Took < 500*time.Millisecond {
			t.Errorf("a second invocation ended %v after the first began: the environment was busy for 500 ms", a.Took+b.Took)
		} else if b.Status == 429 {
			t.WaitLog("END RequestId: " + a.ID())
		}
	}},
	{ID: "RT-33", Setup: plain, Run: func(t *suite.T) {
		const nonce = "Lambda-Runtime-Invocation-Id"
		a, j := t.PlayAnswered(answer("stale", "1", nonce, "another"), answer("good", "2", nonce, "{nonce}"))
		if s := t.One(j, "stale").Status; s/100 != 4 {
			t.Errorf("foreign invocation id: status %d", s)
		}
		t.Status(j, "good", 202)
		suite.Equal(t, "answer", string(a.Body), "2")
	}},
	{ID: "RT-34", Setup: plain, Run: func(t *suite.T) {
		a, j := t.PlayAnswered(letters(answer("limit", ""), sizeLimit))
		t.Status(j, "limit", 202)
		suite.Equal(t, "length of the answer", len(a.Body), sizeLimit)
		pid := t.First(j, "next").PID
		a, j = t.PlayAnswered(letters(answer("over", ""), sizeLimit+1))
		t.Status(j, "over", 413, "RequestEntityTooLarge", "Exceeded maximum allowed payload size (6291556 bytes).")
		t.FunctionError(a, "Function.ResponseSizeTooLarge", "Response payload size exceeded maximum allowed payload size (6291556 bytes).")
		_, j = t.Play()
		suite.Equal(t, "pid after it", t.First(j, "next").PID, pid)
	}},
	{ID: "RT-35", Setup: plain, Run: func(t *suite.T) {
		for name, s := range map[string]step{
			"short":        truncated("r", "Content-Length: 100", "0123456789"),
			"broken chunk": truncated("r", "Transfer-Encoding: chunked", "5\r\nabcde\r\nzz\r\n"),
		} {
			a, j := t.PlayAnswered(s)
			e := t.Status(j, "r", 400, "TruncatedHTTPRequest", "HTTP request detected as truncated")
			t.FunctionError(a, "Runtime.TruncatedResponse", "")
			if e.Status != 400 {
				t.Errorf("body: %s", name)
			}
		}
		suite.Equal(t, "answer after it", string(t.Invoke("1").Body), "1")
	}},
	{ID: "RT-36", Setup: plain, Run: func(t *suite.T) {
		payload, play := t.Event(true, answer("r", "1", modeHeader, "sideways"))
		a := t.Invoke(payload)
		t.FunctionError(a, "Runtime.InvalidResponseModeHeader", "")
		t.Contains("answer", string(a.Body), "RequestId: "+a.ID()+" Error: Invalid function response mode")
		t.Status(t.Journal().Of(play), "r", 400, "InvalidFunctionResponseMode", "Invalid function response mode")
	}},
}

const customError = `{"errorMessage":"as it came","errorType":"My.Error","stackTrace":[{"odd":1},"x"], "cause":{"more":true}}`

// handlerError is sections 1.5 and 1.6.
var handlerError = []suite.Case{
	{ID: "RT-38", Setup: plain, Run: func(t *suite.T) {
		for _, body := range []string{customError, "no JSON at all"} {
			a, j := t.PlayAnswered(post("wrong id", runtimeBase+"invocation/"+unknownID+"/error", body), fault("e", body), fault("twice", body))
			t.Status(j, "wrong id", 400, "InvalidRequestID")
			t.Status(j, "e", 202)
			t.Status(j, "twice", 403, "InvalidStateTransition")
			suite.Equal(t, "answer", string(a.Body), body)
			suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "Unhandled")
		}
	}},
	{ID: "RT-39", Setup: plain, Run: func(t *suite.T) {
		a, j := t.PlayAnswered(fault("e", customError, "Content-Type", "application/json"))
		t.Status(j, "e", 202)
		suite.Equal(t, "answer", string(a.Body), customError)
	}},
	{ID: "RT-40", Setup: plain, Run: func(t *suite.T) {
		const kind = "application/vnd.aws.lambda.error.cause+json"
		a, j := t.PlayAnswered(fault("e", `{"errorMessage":"m","errorType":"T","stackTrace":["s"],"errorCause":{"message":"c"},"more":1}`, "Content-Type", kind))
		t.Status(j, "e", 202)
		suite.Equal(t, "Content-Type", a.Header.Get("Content-Type"), "application/json")
		for part, want := range map[string]bool{`"errorMessage":"m"`: true, `"errorType":"T"`: true, `"stackTrace":["s"]`: true, "errorCause": false, "more": false} {
			if strings.Contains(string(a.Body), part) != want {
				t.Errorf("answer %s: %s in it is %v", suite.Short(a.Body), part, !want)
			}
		}
		a, j = t.PlayAnswered(fault("bad", `{`, "Content-Type", kind))
		t.Status(j, "bad", 202)
		suite.Equal(t, "answer to what cannot be parsed", string(a.Body), `"Invalid error body"`)
		suite.Equal(t, "its Content-Type", a.Header.Get("Content-Type"), "application/octet-stream")
	}},
	{ID: "RT-41", Setup: plain, Run: func(t *suite.T) {
		for _, kind := range []string{"", "Runtime.Mine", "odd"} {
			a, j := t.PlayAnswered(fault("e", customError, "Lambda-Runtime-Function-Error-Type", kind))
			t.Status(j, "e", 202)
			suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "Unhandled")
		}
	}},
	{ID: "RT-42", Setup: plain, Run: func(t *suite.T) {
		a, j := t.PlayAnswered(fault("e", customError, xrayCause, `{"working_directory":"/","exceptions":[],"paths":["a"],"message":"m"}`))
		t.Status(j, "e", 202)
		suite.Equal(t, "answer", string(a.Body), customError)
	}},
	{ID: "RT-43", Setup: plain, Run: func(t *suite.T) {
		a, j := t.PlayAnswered(letters(fault("e", ""), sizeLimit+1))
		t.Status(j, "e", 413, "RequestEntityTooLarge")
		t.FunctionError(a, "Function.ResponseSizeTooLarge", "")
	}},
	{ID: "RT-44", Setup: plain, Run: func(t *suite.T) {
		_, j := t.PlayAnswered(fault("e", customError), answer("then", "1"))
		t.Status(j, "then", 403, "RuntimeResponseSentState")
		_, after := t.Play()
		suite.Equal(t, "pid after it", t.First(after, "next").PID, t.First(j, "next").PID)
	}},
	{ID: "RT-48", Setup: plain, Run: func(t *suite.T) {
		for _, cause := range []string{"not JSON", `{}`, `[1]`, `{"exceptions":1}`} {
			_, j := t.PlayAnswered(fault("e", customError, xrayCause, cause))
			t.Status(j, "e", 202)
		}
	}},
}

const xrayCause = "Lambda-Runtime-Function-XRay-Error-Cause"

const initErrorBody = `{"errorMessage":"no such table","errorType":"My.InitError","stackTrace":[]}`

var (
	// refusing posts init/error, tries what is no longer allowed, and ends.
	refusing = &suite.Setup{Name: "init error, then calls", Runtime: starts(
		steps(post("init/error", initErrorPath, initErrorBody, "Lambda-Runtime-Function-Error-Type", "Runtime.Mine"),
			get("next", nextPath), post("init/error again", initErrorPath, "{}"), get("ping", pingPath), exit(1)),
		nil)}
	// failing posts init/error at every start, and ends.
	failing = &suite.Setup{Name: "init error", Runtime: starts(steps(post("init/error", initErrorPath, initErrorBody), exit(1)))}
	// hasty does not wait for the answer, as the Python client.
	hasty = &suite.Setup{Name: "init error and exit at once", Runtime: starts(steps(step{Op: "raw", Name: "init/error",
		Data: "POST " + initErrorPath + " HTTP/1.1\r\nHost: api\r\nContent-Length: " + strconv.Itoa(len(initErrorBody)) + "\r\n\r\n" + initErrorBody}, exit(1)))}
)

// initError is section 1.7.
var initError = []suite.Case{
	{ID: "RT-49", Setup: refusing, Run: func(t *suite.T) {
		t.Invoke("1")
		j := t.Journal().By("runtime")
		t.Status(j, "init/error", 202, `{"status":"OK"}`)
		var refused script.Entries
		for _, e := range j.Named("next") {
			if e.Status != 200 {
				refused = append(refused, e)
			}
		}
		t.Status(refused, "next", 403, "InvalidStateTransition")
		t.Status(j, "init/error again", 403)
		t.Status(j, "ping", 200)
	}},
	{ID: "RT-50", Setup: failing, Run: func(t *suite.T) {
		a := t.Invoke("1")
		suite.Equal(t, "answer", string(a.Body), initErrorBody)
		suite.Equal(t, "Content-Type", a.Header.Get("Content-Type"), "application/json")
		suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "Unhandled")
	}},
	{ID: "RT-51", Setup: hasty, Run: func(t *suite.T) {
		suite.Equal(t, "answer", string(t.Invoke("1").Body), initErrorBody)
	}},
	{ID: "RT-52", Setup: plain, Run: func(t *suite.T) {
		a, j := t.Play(post("late", initErrorPath, "{}"))
		t.Status(j, "late", 403, "InvalidStateTransition")
		suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "")
	}},
	{ID: "RT-54", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play(get("restore", runtimeBase+"restore/next"))
		if s := t.One(j, "restore").Status; s != 403 && s != 404 { // 404: no snap-start (table of section 1.2)
			t.Errorf("restore/next outside Started: status %d", s)
		}
	}},
	{ID: "RT-55", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play(post("restore", runtimeBase+"restore/error", "{}"))
		if s := t.One(j, "restore").Status; s != 403 && s != 404 {
			t.Errorf("restore/error outside Restoring: status %d", s)
		}
	}},
}

// early tries calls in the state Started.
var early = &suite.Setup{Name: "calls before next", Runtime: starts(steps(
	post("response", runtimeBase+"invocation/"+unknownID+"/response", "{}"),
	post("error", runtimeBase+"invocation/"+unknownID+"/error", "{}")))}

// states is section 1.8, and what of 1.9 holds for the classic mode.
var states = []suite.Case{
	{ID: "RT-57", Setup: early, Run: func(t *suite.T) {
		j := t.Journal().By("runtime")
		t.Status(j, "response", 400, "InvalidRequestID")
		t.Status(j, "error", 400, "InvalidRequestID")
		_, j = t.PlayAnswered(post("Running init/error", initErrorPath, "{}"), answer("Running response", "1"),
			answer("Sent response", "1"), fault("Sent error", "{}"), post("Sent init/error", initErrorPath, "{}"))
		t.Status(j, "Running init/error", 403, "from Running")
		t.Status(j, "Running response", 202)
		for _, name := range []string{"Sent response", "Sent error", "Sent init/error"} {
			t.Status(j, name, 403, "from RuntimeResponseSentState")
		}
		// Ready: a next waits, and nothing is current any more.
		first, play := t.Event(true, answer("r", "1"), background(get("waits", nextPath)), wait("waits", 100),
			post("Ready init/error", initErrorPath, "{}"), cancel("waits"))
		t.Invoke(first)
		t.Status(t.Journal().Of(play), "Ready init/error", 403)
	}},
	{ID: "RT-67", Setup: plain, Run: func(t *suite.T) {
		if v, there := variable(runtimeEnv(t), "AWS_LAMBDA_MAX_CONCURRENCY"); there {
			t.Errorf("AWS_LAMBDA_MAX_CONCURRENCY is there: %q", v)
		}
	}},
}
