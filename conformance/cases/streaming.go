package cases

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/suite"
)

// stream is a streaming response of some chunks.
func stream(name string, trailers map[string]string, chunks ...chunk) step {
	s := answer(name, "", modeHeader, "streaming")
	s.Chunks, s.Trailers = chunks, trailers
	return s
}

// midStream are the trailers of a failure in the middle; the body is base64 of
// {"errorMessage":"m","errorType":"Mine"}.
var midStream = map[string]string{
	"Lambda-Runtime-Function-Error-Type": "Runtime.Mine",
	"Lambda-Runtime-Function-Error-Body": "eyJlcnJvck1lc3NhZ2UiOiJtIiwiZXJyb3JUeXBlIjoiTWluZSJ9",
}

// streamed plays steps that answer in a streaming invocation, which must be taken.
func streamed(t *suite.T, s ...step) *suite.Stream {
	payload, _ := t.Event(true, s...)
	got := t.InvokeStream(payload)
	if got.Status != 200 || len(got.Messages) == 0 {
		t.Fatalf("streaming invocation: status %d %s, %d frames", got.Status, suite.Short(got.Body), len(got.Messages))
	}
	return got
}

// complete is the end of a stream: one InvokeComplete, and it is the last frame.
func complete(t *suite.T, s *suite.Stream) (end struct{ ErrorCode, ErrorDetails, LogResult string }) {
	for i, m := range s.Messages {
		if last := i == len(s.Messages)-1; last != (m.Kind() == "InvokeComplete") {
			t.Fatalf("frame %d of %d is %s", i+1, len(s.Messages), m.Kind())
		}
	}
	last := s.Messages[len(s.Messages)-1]
	if err := json.Unmarshal(last.Payload, &end); err != nil {
		t.Fatalf("InvokeComplete %q: %v", last.Payload, err)
	}
	return end
}

// streaming is section 1.10.
var streaming = []suite.Case{
	{ID: "RT-69", Setup: plain, Run: func(t *suite.T) {
		s := streamed(t, stream("r", nil, chunk{Data: "first "}, chunk{AfterMS: 1500, Data: "second"}))
		suite.Equal(t, "chunks", s.Chunks(), "first second")
		if len(s.Messages) > 0 && s.Messages[0].After > s.Took-500*time.Millisecond {
			t.Errorf("the first chunk came after %v, of %v: it was held back", s.Messages[0].After, s.Took)
		}
	}},
	{ID: "RT-70", Setup: plain, Run: func(t *suite.T) {
		plainChunks := answer("r", "")
		plainChunks.Chunks, plainChunks.Trailers = []chunk{{Data: "part"}}, midStream
		a, j := t.PlayAnswered(plainChunks)
		t.Status(j, "r", 202)
		t.FunctionError(a, "Mine", "m")
	}},
	{ID: "RT-71", Setup: plain, Run: func(t *suite.T) {
		const size = 8 << 20 // more than a buffered answer may have
		s := streamed(t, stream("r", nil, chunk{N: size}))
		suite.Equal(t, "length", len(s.Chunks()), size)
	}},
	{ID: "RT-73", Setup: plain, Run: func(t *suite.T) {
		s := streamed(t, stream("r", nil, chunk{Data: "first"}, chunk{AfterMS: 60_000, Data: "never"}))
		if end := complete(t, s); end.ErrorCode != "Sandbox.Timeout" && end.ErrorCode != "Sandbox.Timedout" {
			t.Errorf("ErrorCode %q after a timeout", end.ErrorCode)
		}
	}},
	{ID: "RT-74", Setup: plain, Run: func(t *suite.T) {
		a, j := t.PlayAnswered(stream("r", nil, chunk{Data: "one "}, chunk{AfterMS: 50, Data: "two"}))
		t.Status(j, "r", 202)
		suite.Equal(t, "buffered answer of a streaming handler", string(a.Body), "one two")
		s := streamed(t, answer("r", "whole"))
		suite.Equal(t, "streamed answer of a buffered handler", s.Chunks(), "whole")
	}},
	{ID: "RT-75", Setup: plain, Run: func(t *suite.T) {
		r := stream("r", nil, chunk{Data: `{"statusCode":201}` + strings.Repeat("\x00", 8) + "body"})
		r.Headers["Content-Type"] = "application/vnd.awslambda.http-integration-response"
		suite.Equal(t, "chunks", streamed(t, r).Chunks(), `{"statusCode":201}`+strings.Repeat("\x00", 8)+"body")
	}},
}

// invokeStream is section 5.3. The frames of INV-30 are checked by the suite as it reads.
var invokeStream = []suite.Case{
	{ID: "INV-28", Setup: plain, Run: func(t *suite.T) {
		suite.Equal(t, "chunks", streamed(t, stream("r", nil, chunk{Data: "x"})).Chunks(), "x")
		a := t.Request("POST", suite.StreamPath, []byte("1"), "X-Amz-Invocation-Type", "Event")
		suite.Equal(t, "status of an Event", a.Status, 400)
	}},
	{ID: "INV-29", Setup: plain, Run: func(t *suite.T) {
		s := streamed(t, stream("r", nil, chunk{Data: "x"}))
		suite.Equal(t, "Content-Type", s.Header.Get("Content-Type"), "application/vnd.amazon.eventstream")
		suite.Equal(t, "X-Amz-Executed-Version", s.Header.Get("X-Amz-Executed-Version"), "$LATEST")
		if !uuid.MatchString(s.ID()) {
			t.Errorf("X-Amzn-RequestId %q", s.ID())
		}
	}},
	{ID: "INV-30", Setup: plain, Run: func(t *suite.T) {
		suite.Equal(t, "length", len(streamed(t, stream("r", nil, chunk{N: 1 << 20})).Chunks()), 1<<20)
	}},
	{ID: "INV-31", Setup: plain, Run: func(t *suite.T) {
		for _, m := range streamed(t, stream("r", nil, chunk{Data: "x"})).Messages {
			kind := map[string]string{"PayloadChunk": "application/octet-stream", "InvokeComplete": "application/json"}[m.Kind()]
			suite.Equal(t, ":message-type", m.Headers[":message-type"], "event")
			suite.Equal(t, ":content-type", m.Headers[":content-type"], kind)
		}
	}},
	{ID: "INV-32", Setup: plain, Run: func(t *suite.T) {
		suite.Equal(t, "ErrorCode", complete(t, streamed(t, stream("r", nil, chunk{Data: "x"}))).ErrorCode, "")
		end := complete(t, streamed(t, stream("r", midStream, chunk{Data: "x"})))
		suite.Equal(t, "ErrorCode of trailers", end.ErrorCode, "Runtime.Mine")
		t.Contains("ErrorDetails", end.ErrorDetails, `"errorType":"Mine"`)
		end = complete(t, streamed(t, exit(1)))
		suite.Equal(t, "ErrorCode of an exit", end.ErrorCode, "Runtime.ExitError")
		end = complete(t, streamed(t, fault("e", customError)))
		t.Contains("ErrorDetails of a posted error", end.ErrorDetails, "My.Error")
		if end.ErrorCode == "" {
			t.Errorf("a posted error has no ErrorCode")
		}
	}},
	{ID: "INV-33", Setup: plain, Run: func(t *suite.T) {
		s := t.Request("POST", strings.Replace(suite.StreamPath, "/function/", "/nobody/", 1), []byte("1"))
		refusal(t, s, 404, "ResourceNotFoundException")
	}},
}
