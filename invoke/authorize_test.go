package invoke

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/rapid"
)

// post sends a request to the server, and returns status, error type and body.
func (r *rig) post(path, body string, header map[string]string) (int, string, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.http.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("X-Amzn-Errortype"), string(text)
}

// Nothing is handed out unless the caller was authorized for the function that it names and
// for the body that it sent. Wrong names are told to known callers only.
func TestAuthorize(t *testing.T) {
	var arns []string
	r := newRig(t, 1, echo, func(c *Config) {
		c.Authorize = func(req *http.Request, arn string) (BodyCheck, error) {
			arns = append(arns, arn)
			switch req.Header.Get("Authorization") {
			case "":
				return nil, &Fault{http.StatusForbidden, "MissingAuthenticationTokenException", "Missing Authentication Token"}
			case "broken":
				return nil, errors.New("the cause")
			case "any body":
				return nil, nil
			}
			return func(body []byte) error {
				if string(body) != req.Header.Get("Authorization") {
					return &Fault{http.StatusForbidden, "InvalidSignatureException", "another body"}
				}
				return nil
			}, nil
		}
	})
	const (
		path = "/2015-03-31/functions/hello/invocations"
		arn  = "arn:aws:lambda:eu-west-1:012345678912:function:"
	)
	for _, tt := range []struct {
		name, path, auth, body string
		status                 int
		kind, arn, text        string
	}{
		{"authorized", path, "{}", "{}", 200, "", arn + "hello", "{}"},
		{"authorized for any body", path, "any body", "[1]", 200, "", arn + "hello", "[1]"},
		{"authorized for no body", path, "", "", 403, "MissingAuthenticationTokenException", arn + "hello", `{"Type":"User","message":"Missing Authentication Token"}`},
		{"another body", path, "{}", "[]", 403, "InvalidSignatureException", arn + "hello", `{"Type":"User","message":"another body"}`},
		{"another body that is not JSON", path, "{}", "x", 403, "InvalidSignatureException", arn + "hello", ""},
		{"a fault of the platform", path, "broken", "{}", 500, "ServiceException", arn + "hello", ""},
		{"an ARN", "/2015-03-31/functions/arn:aws:lambda:eu-west-1:012345678912:function:hello:$LATEST/invocations", "{}", "{}", 200, "", arn + "hello:$LATEST", ""},
		{"a qualifier", path + "?Qualifier=7", "{}", "{}", 404, "ResourceNotFoundException", arn + "hello:7", ""},
		{"another account", "/2015-03-31/functions/999999999999:function:hello/invocations", "{}", "{}", 404, "ResourceNotFoundException", "arn:aws:lambda:eu-west-1:999999999999:function:hello", ""},
		{"another function", "/2015-03-31/functions/other/invocations", "{}", "{}", 404, "ResourceNotFoundException", arn + "other", ""},
		{"no name", "/2015-03-31/functions/a+b/invocations", "{}", "{}", 400, "ValidationException", "", ""},
		{"no name, of a stranger", "/2015-03-31/functions/a+b/invocations", "", "{}", 403, "MissingAuthenticationTokenException", "", ""},
		{"streamed", "/2021-11-15/functions/hello/response-streaming-invocations", "{}", "[]", 403, "InvalidSignatureException", arn + "hello", ""},
	} {
		arns, r.got = nil, nil
		status, kind, text := r.post(tt.path, tt.body, map[string]string{"Authorization": tt.auth})
		if status != tt.status || kind != tt.kind || tt.text != "" && text != tt.text {
			t.Errorf("%s: %d %s %s, want %d %s %s", tt.name, status, kind, text, tt.status, tt.kind, tt.text)
		}
		if len(arns) != 1 || arns[0] != tt.arn {
			t.Errorf("%s: authorized for %q, want %q", tt.name, arns, tt.arn)
		}
		if (len(r.got) == 1) != (tt.status == 200) {
			t.Errorf("%s: %d invocations", tt.name, len(r.got))
		}
	}
	if status, _, _ := r.post(path, "", map[string]string{"Authorization": "x"}); status != 403 || len(r.got) != 0 {
		t.Errorf("an empty body where another is signed: %d", status)
	}
	if len(r.errs) != 1 || !strings.Contains(r.errs[0].Error(), "the cause") {
		t.Errorf("the log has %v", r.errs)
	}
}

// Asynchronous invocations are refused where there is no queue.
func TestNoEvents(t *testing.T) {
	r := newRig(t, 1, echo, func(c *Config) { c.NoEvents = true })
	for _, tt := range []struct {
		path, kind string
		status     int
	}{
		{"/2015-03-31/functions/hello/invocations", "Event", 400},
		{"/2014-11-13/functions/hello/invoke-async/", "", 400},
		{"/2015-03-31/functions/hello/invocations", "RequestResponse", 200},
		{"/2015-03-31/functions/hello/invocations", "DryRun", 204},
	} {
		status, kind, text := r.post(tt.path, "{}", map[string]string{"X-Amz-Invocation-Type": tt.kind})
		if status != tt.status || status == 400 && (kind != "InvalidParameterValueException" || !strings.Contains(text, "not supported yet")) {
			t.Errorf("%s %s: %d %s %s, want %d", tt.path, tt.kind, status, kind, text, tt.status)
		}
	}
	if len(r.got) != 1 {
		t.Errorf("%d invocations, want 1", len(r.got))
	}
}

// What is no invocation goes to Config.Pass; what is, does not, nor what a web page sends.
func TestPass(t *testing.T) {
	var passed []string
	r := newRig(t, 1, echo, func(c *Config) {
		c.Pass = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			passed = append(passed, r.Method+" "+r.RequestURI)
			if len(w.Header()) != 0 {
				t.Errorf("the answer has the headers %v already", w.Header())
			}
			w.WriteHeader(http.StatusTeapot)
		})
	})
	for _, tt := range []struct {
		path, origin string
		status       int
	}{
		{"/2015-03-31/functions", "", http.StatusTeapot},
		{"/2015-03-31/functions/hello/invocations/x?y", "", http.StatusTeapot},
		{"/2015-03-31/functions/hello/invocations", "", http.StatusOK},
		{"/2015-03-31/functions", "http://evil.example", http.StatusForbidden},
	} {
		passed = nil
		header := map[string]string{}
		if tt.origin != "" {
			header["Origin"] = tt.origin
		}
		status, _, text := r.post(tt.path, "{}", header)
		if status != tt.status || (len(passed) == 1 && passed[0] == "POST "+tt.path) != (status == http.StatusTeapot) {
			t.Errorf("%s of %q: %d %s, passed %q; want %d", tt.path, tt.origin, status, text, passed, tt.status)
		}
	}
}

// unready are functions that cannot be found or leased, because of err.
type unready struct{ find, lease error }

func (u unready) Find(context.Context, string, string) (Function, error) {
	return Function{ARN: testARN, Version: "$LATEST"}, u.find
}
func (u unready) Lease(context.Context, string, string, string) (Lease, error) { return nil, u.lease }

// What Functions refuse the caller gets in the form of the API, with the reason of a limit
// (INV-26) and when to try again.
func TestRefusalsOfFunctions(t *testing.T) {
	fault := &Fault{http.StatusServiceUnavailable, "ServiceException", "not now"}
	for _, tt := range []struct {
		functions Functions
		status    int
		kind      string
		text      string
	}{
		{unready{find: fault}, 503, "ServiceException", `{"Type":"Service","Message":"not now"}`},
		{unready{lease: fault}, 503, "ServiceException", `{"Type":"Service","Message":"not now"}`},
		{unready{find: ErrNoFunction}, 404, "ResourceNotFoundException", ""},
		{unready{lease: ErrTooMany}, 429, "TooManyRequestsException", `{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}`},
		{unready{lease: ErrAllBusy}, 429, "TooManyRequestsException", `{"Reason":"ConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}`},
		{unready{find: errors.New("x")}, 500, "ServiceException", ""},
		{unready{find: &Fault{http.StatusConflict, "ResourceConflictException", "pending"}}, 409, "ResourceConflictException", `{"Type":"User","Message":"pending"}`},
	} {
		r := newRig(t, 1, func(context.Context, *rapid.Invocation) (*rapid.Result, error) {
			t.Error("an invocation")
			return nil, errors.New("x")
		}, func(c *Config) { c.Functions = tt.functions })
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.http.URL+"/2015-03-31/functions/hello/invocations", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != tt.status || res.Header.Get("X-Amzn-Errortype") != tt.kind || tt.text != "" && string(text) != tt.text {
			t.Errorf("%+v: %d %s %s, want %d %s %s", tt.functions, res.StatusCode, res.Header.Get("X-Amzn-Errortype"), text, tt.status, tt.kind, tt.text)
		}
		if again := res.Header.Get("Retry-After"); (again == "1") != (tt.status == 429 || tt.status == 503) {
			t.Errorf("%+v: Retry-After is %q", tt.functions, again)
		}
	}
}
