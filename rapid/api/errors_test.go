package api

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sandboxd/sandboxd/rapid"
)

// RT-24, RT-37, RT-60: a fault of ours has one form, and does not say what it was.
func TestInternalErrors(t *testing.T) {
	for _, err := range []error{errors.New("secret"), rapid.ErrTooManyWorkers} {
		got := httptest.NewRecorder()
		r := &request{ResponseWriter: got, Request: httptest.NewRequest(http.MethodGet, "/", nil)}
		r.refuse(err)
		if want := "{\"errorMessage\":\"Internal Server Error\",\"errorType\":\"InternalServerError\"}\n"; got.Code != 500 || got.Body.String() != want {
			t.Errorf("%v: %d %s, want 500 %s", err, got.Code, got.Body, want)
		}
	}
}
