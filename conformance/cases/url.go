package cases

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/conformance/suite"
)

// fronted is the environment of a function with a URL.
var fronted = &suite.Setup{Name: "url", URL: true}

const (
	jsonType        = "application/json"
	integrationType = "application/vnd.awslambda.http-integration-response"
)

// urlEvent is the event of a request.
type urlEvent struct {
	Version, RouteKey, RawPath, RawQueryString string
	Cookies                                    []string
	Headers, QueryStringParameters             map[string]string
	RequestContext                             struct {
		AccountID, APIID, DomainName, DomainPrefix, RequestID, RouteKey, Stage, Time string
		HTTP                                                                         struct{ Method, Path, Protocol, SourceIP, UserAgent string }
		TimeEpoch                                                                    int64
	}
	Body            *string
	IsBase64Encoded bool
}

// echoed makes a request that the function answers with its event.
func echoed(t *suite.T, method, path string, body string, header ...string) (*suite.Answer, urlEvent, map[string]any) {
	a := t.Front(method, path, []byte(body), header...)
	var e urlEvent
	var members map[string]any
	if err := json.Unmarshal(a.Body, &e); err != nil {
		t.Fatalf("status %d, the event is %s: %v", a.Status, suite.Short(a.Body), err)
	}
	if err := json.Unmarshal(a.Body, &members); err != nil {
		t.Fatalf("%v", err)
	}
	return a, e, members
}

// fronting plays steps that answer a request.
func fronting(t *suite.T, s ...step) *suite.Answer {
	payload, _ := t.Event(true, s...)
	return t.Front("POST", "/", []byte(payload), "Content-Type", jsonType)
}

// responding is the response to a request that the function answers with text.
func responding(t *suite.T, text string) *suite.Answer {
	return fronting(t, answer("r", text, "Content-Type", jsonType))
}

var nuls = strings.Repeat("\x00", 8)

// functionURL is section 5.5. INV-42's trace id and INV-52's modes are for the Go tests.
var functionURL = []suite.Case{
	{ID: "INV-40", Setup: fronted, Run: func(t *suite.T) {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
			_, e, _ := echoed(t, method, "/a%2Fb/%C3%B6?c=d%20e", "")
			suite.Equal(t, "version", e.Version, "2.0")
			suite.Equal(t, "rawPath", e.RawPath, "/a%2Fb/%C3%B6")
			suite.Equal(t, "rawQueryString", e.RawQueryString, "c=d%20e")
			suite.Equal(t, "method", e.RequestContext.HTTP.Method, method)
			suite.Equal(t, "routeKey and stage", e.RouteKey+e.RequestContext.RouteKey+e.RequestContext.Stage, "$default$default$default")
		}
		suite.Equal(t, "status of HEAD", t.Front("HEAD", "/", nil).Status, 200)
		suite.Equal(t, "status of PROPFIND", t.Front("PROPFIND", "/", nil).Status, 405)
	}},
	{ID: "INV-41", Setup: fronted, Run: func(t *suite.T) {
		a, e, all := echoed(t, "GET", "/path", "", "User-Agent", "mine")
		c := e.RequestContext
		suite.Equal(t, "path", c.HTTP.Path, "/path")
		suite.Equal(t, "protocol", c.HTTP.Protocol, "HTTP/1.1")
		suite.Equal(t, "sourceIp", c.HTTP.SourceIP, "127.0.0.1")
		suite.Equal(t, "userAgent", c.HTTP.UserAgent, "mine")
		suite.Equal(t, "requestId", c.RequestID, a.ID())
		suite.Equal(t, "accountId", c.AccountID, "anonymous")
		suite.Equal(t, "domainName", c.DomainName, e.Headers["host"])
		suite.Equal(t, "domainPrefix", c.DomainPrefix, c.APIID)
		if !regexp.MustCompile(`^\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d \+0000$`).MatchString(c.Time) || c.TimeEpoch < 1_500_000_000_000 {
			t.Errorf("time %q, timeEpoch %d", c.Time, c.TimeEpoch)
		}
		for _, name := range []string{"body", "cookies", "queryStringParameters"} {
			if v, there := all[name]; there {
				t.Errorf("%s is %v without one in the request", name, v)
			}
		}
	}},
	{ID: "INV-42", Setup: fronted, Run: func(t *suite.T) {
		_, e, _ := echoed(t, "GET", "/", "", "X-Mine", "a", "x-mine", "b", "Cookie", "c=d; e=f", "Connection", "keep-alive", "X-Forwarded-For", "203.0.113.7")
		suite.Equal(t, "x-mine", e.Headers["x-mine"], "a,b")
		suite.Equal(t, "cookie", e.Headers["cookie"], "c=d; e=f")
		suite.Equal(t, "cookies", strings.Join(e.Cookies, "|"), "c=d|e=f")
		suite.Equal(t, "x-forwarded-for", e.Headers["x-forwarded-for"], "127.0.0.1")
		for _, name := range []string{"x-forwarded-port", "x-forwarded-proto", "x-amzn-trace-id"} {
			if e.Headers[name] == "" {
				t.Errorf("no %s in %v", name, e.Headers)
			}
		}
		if _, there := e.Headers["connection"]; there {
			t.Errorf("headers %v", e.Headers)
		}
	}},
	{ID: "INV-43", Setup: fronted, Run: func(t *suite.T) {
		_, e, _ := echoed(t, "GET", "/?a=1&b=%2Fx+y&a=2&c", "")
		suite.Equal(t, "a", e.QueryStringParameters["a"], "1,2")
		suite.Equal(t, "b", e.QueryStringParameters["b"], "/x y")
		if v, there := e.QueryStringParameters["c"]; v != "" || !there {
			t.Errorf("c is %q, %v", v, there)
		}
	}},
	{ID: "INV-44", Setup: fronted, Run: func(t *suite.T) {
		for kind, text := range map[string]bool{
			"text/plain": true, "text/html; charset=utf-8": true, jsonType: true, "application/xml": true, "application/javascript": true,
			"application/octet-stream": false, "image/png": false, "application/x-www-form-urlencoded": false, "multipart/form-data; boundary=x": false, "": false,
		} {
			_, e, _ := echoed(t, "POST", "/", "grüße", "Content-Type", kind)
			want := "grüße"
			if !text {
				want = base64.StdEncoding.EncodeToString([]byte(want))
			}
			if e.Body == nil || *e.Body != want || e.IsBase64Encoded == text {
				t.Errorf("%q: body %v, isBase64Encoded %v", kind, e.Body, e.IsBase64Encoded)
			}
		}
	}},
	{ID: "INV-45", Setup: fronted, Run: func(t *suite.T) {
		suite.Equal(t, "status of 6 MB of text", t.Front("POST", "/", make([]byte, 6<<20), "Content-Type", "text/plain").Status, 413)
		suite.Equal(t, "status of 5 MB in base64", t.Front("POST", "/", make([]byte, 5<<20)).Status, 413)
	}},
	{ID: "INV-46", Setup: fronted, Run: func(t *suite.T) {
		for text, want := range map[string]string{`{"hello": "world"}`: `{"hello":"world"}`, `["hello", 3, true]`: `["hello",3,true]`, `"hello"`: `hello`, `3.1`: `3.1`, `true`: `true`} {
			a := responding(t, text)
			suite.Equal(t, "status of "+text, a.Status, 200)
			suite.Equal(t, "body of "+text, string(a.Body), want)
			suite.Equal(t, "Content-Type of "+text, a.Header.Get("Content-Type"), jsonType)
		}
	}},
	{ID: "INV-47", Setup: fronted, Run: func(t *suite.T) {
		a := responding(t, `{"statusCode":201,"headers":{"Content-Type":"text/plain","My-Header":"a value"},"body":"made"}`)
		suite.Equal(t, "response", strconv.Itoa(a.Status)+a.Header.Get("Content-Type")+a.Header.Get("My-Header")+string(a.Body), "201text/plaina valuemade")
		a = responding(t, `{"statusCode":"418","body":"i'm a teapot"}`)
		suite.Equal(t, "response", strconv.Itoa(a.Status)+a.Header.Get("Content-Type")+string(a.Body), "418application/jsoni'm a teapot")
	}},
	{ID: "INV-48", Setup: fronted, Run: func(t *suite.T) {
		a := responding(t, `{"statusCode":200,"isBase64Encoded":true,"body":"AP+A","cookies":["a=b; Max-Age=7","c=d"]}`)
		suite.Equal(t, "body", string(a.Body), "\x00\xff\x80")
		suite.Equal(t, "Set-Cookie", strings.Join(a.Header.Values("Set-Cookie"), "|"), "a=b; Max-Age=7|c=d")
	}},
	{ID: "INV-49", Setup: fronted, Run: func(t *suite.T) {
		a := responding(t, `{"statusCode":200,"headers":{"Content-Length":"1","Transfer-Encoding":"mine","Connection":"close"},"body":"four"}`)
		suite.Equal(t, "body", string(a.Body), "four")
		a = responding(t, `{"statusCode":204,"body":"none"}`)
		suite.Equal(t, "body of 204", string(a.Body), "")
		a = t.Front("HEAD", "/", nil)
		suite.Equal(t, "body of HEAD", string(a.Body), "")
	}},
	{ID: "INV-50", Setup: fronted, Run: func(t *suite.T) {
		for name, s := range map[string]step{
			"an error":          fault("e", customError),
			"an exit":           exit(1),
			"no JSON":           answer("r", "<html>"),
			"a wrong status":    answer("r", `{"statusCode":99}`),
			"a line end":        answer("r", `{"statusCode":200,"headers":{"a":"b\r\nc: d"}}`),
			"what is no base64": answer("r", `{"statusCode":200,"body":"*","isBase64Encoded":true}`),
		} {
			a := fronting(t, s)
			suite.Equal(t, "status of "+name, a.Status, 502)
			suite.Equal(t, "body of "+name, string(a.Body), "Internal Server Error")
		}
	}},
	{ID: "INV-51", Setup: fronted, Run: func(t *suite.T) {
		s := stream("r", nil, chunk{Data: `{"statusCode":202,"headers":{"Content-Type":"text/plain"},"cookies":["a=b"]}` + nuls + "one "}, chunk{AfterMS: 50, Data: "two"})
		s.Headers["Content-Type"] = integrationType
		a := fronting(t, s)
		suite.Equal(t, "response", strconv.Itoa(a.Status)+a.Header.Get("Content-Type")+a.Header.Get("Set-Cookie")+string(a.Body), "202text/plaina=bone two")
	}},
	{ID: "INV-53", Setup: fronted, Run: func(t *suite.T) {
		s := stream("r", midStream, chunk{Data: `{"statusCode":200}`})
		s.Headers["Content-Type"] = integrationType
		suite.Equal(t, "status of a failure before the response", fronting(t, s).Status, http.StatusBadGateway)
	}},
}
