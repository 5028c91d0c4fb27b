package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/google/uuid"
)

// EX-07 to EX-15: whatever an extension registers with, it is registered or refused in
// one of the documented ways.
func FuzzRegister(f *testing.F) {
	f.Add("name", "accountId", []byte(`{"events":["INVOKE"]}`))
	f.Add("", "", []byte(`{}`))
	f.Add("x", "a,,b", []byte(`{"events":["SHUTDOWN"],"configurationKeys":[]}`))
	f.Add("x", "", []byte(`{"events":"INVOKE"}`))
	w := newWorld(f, setup{})
	w.running()
	refusals := []string{"InvalidRequestFormat", "Extension.InvalidExtensionName", "Extension.InvalidEventType",
		"Extension.InvalidExtensionState", "Extension.TooManyExtensions", "Extension.RegistrationClosed"}
	f.Fuzz(func(t *testing.T, name, features string, body []byte) {
		hr := httptest.NewRequest(http.MethodPost, extPath+"register", bytes.NewReader(body))
		hr.Header["Lambda-Extension-Name"] = []string{name}
		hr.Header["Lambda-Extension-Accept-Feature"] = []string{features}
		got := httptest.NewRecorder()
		r := &request{ResponseWriter: got, Request: hr, sandbox: w.s, client: w.s.NewClient()}
		if err := register(r); err != nil {
			r.refuse(err)
		}
		var answer struct{ ErrorType, FunctionName string }
		if err := json.Unmarshal(got.Body.Bytes(), &answer); err != nil {
			t.Fatalf("%d %s: %v", got.Code, got.Body, err)
		}
		switch got.Code {
		case http.StatusOK:
			if uuid.Validate(got.Header().Get(identifier)) != nil || answer.FunctionName == "" || name == "" {
				t.Errorf("%v %s", got.Header(), got.Body)
			}
		case http.StatusForbidden:
			if !slices.Contains(refusals, answer.ErrorType) {
				t.Errorf("refused as %q", answer.ErrorType)
			}
		case http.StatusRequestEntityTooLarge:
			if len(body) <= maxSmall {
				t.Errorf("%d bytes are too many", len(body))
			}
		default:
			t.Errorf("%d %s", got.Code, got.Body)
		}
	})
}
