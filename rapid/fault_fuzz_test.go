package rapid

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

// RT-38 to RT-48: whatever a runtime posts as its error, the caller gets the body or
// the three members of RT-40, the type is one of RT-45, and the cause is bounded JSON.
func FuzzErrorAnswer(f *testing.F) {
	f.Add("application/json", "Runtime.Oops", []byte(`{"message":"m"}`), []byte(`{"errorMessage":"x","errorType":"T","stackTrace":[]}`))
	f.Add(causeContentType, "Function.X", []byte(`{}`), []byte(`{"errorMessage":"x","errorCause":{"message":"m","paths":["a"]}}`))
	f.Add(causeContentType+"; charset=utf-8", "", []byte(`not json`), []byte(`[`))
	f.Add("", "my.Runtime.AbC\r\n", []byte(`{"exceptions":[{"message":"m","stack":[{"path":"p","line":1}]}],"working_directory":"d"}`), []byte(nil))
	known := regexp.MustCompile(`(Runtime|Function)\.[A-Z][a-zA-Z]+`)
	f.Fuzz(func(t *testing.T, contentType, errorType string, cause, payload []byte) {
		r := errorResult(&Answer{Kind: AnswerError, ContentType: contentType, ErrorType: errorType, Cause: cause, Payload: bytes.Clone(payload)})
		if !r.FunctionError {
			t.Error("an error that is none")
		}
		if !known.MatchString(r.ErrorType) {
			t.Errorf("type %q of %q", r.ErrorType, errorType)
		}
		if r.Cause != nil && (!json.Valid(r.Cause) || len(r.Cause) > 64<<10) {
			t.Errorf("cause of %d bytes: %.100q", len(r.Cause), r.Cause)
		}
		switch {
		case bytes.Equal(r.Payload, payload) && r.ContentType == contentType: // RT-38
		case string(r.Payload) == `"Invalid error body"` && r.ContentType == "application/octet-stream":
		default:
			var body map[string]json.RawMessage
			if err := json.Unmarshal(r.Payload, &body); err != nil || body["errorCause"] != nil || r.ContentType != "application/json" {
				t.Errorf("%q (%s) became %q (%s): %v", payload, contentType, r.Payload, r.ContentType, err)
			}
		}
	})
}

// RT-47: characters that JSON writes longer than they are do not make a cause larger than
// its limit.
func TestCauseOfLongCharacters(t *testing.T) {
	for _, c := range []string{"<", "\x01", "\xff", "é"} {
		raw, err := json.Marshal(map[string]string{"message": strings.Repeat(c, 100_000), "working_directory": strings.Repeat(c, 100_000)})
		if err != nil {
			t.Fatal(err)
		}
		if got := sanitizeCause(raw); len(got) > maxCause || len(got) < maxCauseText || !json.Valid(got) {
			t.Errorf("%q: a cause of %d bytes", c, len(got))
		}
	}
}
