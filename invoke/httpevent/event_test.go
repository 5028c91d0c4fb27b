package httpevent

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var source = Source{RequestID: "8476a536-e9f4-11e8-9739-2dfe598c3fcd", TraceID: "Root=1-5759e988-bd862e3fe1be46a994272793", URLID: "hello",
	Port: "8000", At: time.UnixMilli(1583348638390)}

// request reads a request as the server does. Its client is 192.0.2.7.
func request(t testing.TB, head string) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	r.RemoteAddr = "192.0.2.7:4711"
	return r
}

// event encodes a request and decodes the event.
func event(t testing.TB, head, body string) map[string]any {
	t.Helper()
	b, err := Encode(request(t, head), []byte(body), source)
	if err != nil {
		t.Fatal(err)
	}
	var e map[string]any
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return e
}

// INV-40 to INV-45: the whole event of a request, as AWS documents it.
func TestEvent(t *testing.T) {
	got := event(t, `POST /my/pa%2Fth?parameter1=value1&parameter1=%2Fvalue2&parameter2=a+b HTTP/1.1
Host: app.example:8000
Content-Type: application/json
Content-Length: 17
Cookie: cookie1=a; cookie2=b
Cookie: cookie3=c
Header2: value1
header2: value2
User-Agent: agent
Connection: keep-alive, Extra
Extra: dropped
X-Forwarded-For: 203.0.113.9
X-Forwarded-Proto: gopher`, `{"hello":"wörld"}`)
	want := `{
		"version": "2.0", "routeKey": "$default", "rawPath": "/my/pa%2Fth",
		"rawQueryString": "parameter1=value1&parameter1=%2Fvalue2&parameter2=a+b",
		"cookies": ["cookie1=a", "cookie2=b", "cookie3=c"],
		"headers": {"content-length": "18", "content-type": "application/json", "cookie": "cookie1=a; cookie2=b; cookie3=c",
			"header2": "value1,value2", "host": "app.example:8000", "user-agent": "agent",
			"x-amzn-trace-id": "Root=1-5759e988-bd862e3fe1be46a994272793", "x-forwarded-for": "192.0.2.7", "x-forwarded-port": "8000", "x-forwarded-proto": "http"},
		"queryStringParameters": {"parameter1": "value1,/value2", "parameter2": "a b"},
		"requestContext": {"accountId": "anonymous", "apiId": "hello", "domainName": "app.example:8000", "domainPrefix": "hello",
			"http": {"method": "POST", "path": "/my/pa%2Fth", "protocol": "HTTP/1.1", "sourceIp": "192.0.2.7", "userAgent": "agent"},
			"requestId": "8476a536-e9f4-11e8-9739-2dfe598c3fcd", "routeKey": "$default", "stage": "$default",
			"time": "04/Mar/2020:19:03:58 +0000", "timeEpoch": 1583348638390},
		"body": "{\"hello\":\"wörld\"}", "isBase64Encoded": false}`
	var wanted map[string]any
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		t.Fatal(err)
	}
	a, _ := json.MarshalIndent(got, "", " ")
	b, _ := json.MarshalIndent(wanted, "", " ")
	if !bytes.Equal(a, b) {
		t.Errorf("event\n%s\nwant\n%s", a, b)
	}
}

// INV-41, INV-43, INV-44: what the request does not have, the event does not have.
func TestEventOfBareRequest(t *testing.T) {
	e := event(t, "GET / HTTP/1.1\nHost: x", "")
	for _, name := range []string{"body", "cookies", "queryStringParameters", "pathParameters"} {
		if v, ok := e[name]; ok {
			t.Errorf("%s is %v, want no such member", name, v)
		}
	}
	if e["rawQueryString"] != "" || e["rawPath"] != "/" || e["isBase64Encoded"] != false {
		t.Errorf("%v", e)
	}
}

// INV-44.
func TestEventBody(t *testing.T) {
	for name, tt := range map[string]struct {
		contentType, body string
		encoded           bool
	}{
		"JSON":              {"application/json", `{"a":"ü"}`, false},
		"JSON with charset": {"application/JSON; charset=utf-8", "{}", false},
		"XML":               {"application/xml", "<a/>", false},
		"script":            {"application/javascript", "a()", false},
		"text":              {"text/anything", "a\x01\n\"\\", false},
		"text not UTF-8":    {"text/plain; charset=latin1", "\xfc", true},
		"form":              {"application/x-www-form-urlencoded", "a=b", true},
		"multipart":         {"multipart/form-data; boundary=x", "--x", true},
		"bytes":             {"application/octet-stream", "\x00\xff\x80", true},
		"suffix":            {"application/problem+json", "{}", true},
		"no type":           {"", "a", true},
		"broken type":       {"text/plain; a", "a", false},
		"no type at all":    {"///", "a", true},
	} {
		t.Run(name, func(t *testing.T) {
			e := event(t, "POST / HTTP/1.1\nHost: x\nContent-Type: "+tt.contentType, tt.body)
			text, _ := e["body"].(string)
			if tt.encoded {
				raw, err := base64.StdEncoding.DecodeString(text)
				if err != nil {
					t.Fatal(err)
				}
				text = string(raw)
			}
			if text != tt.body || e["isBase64Encoded"] != tt.encoded {
				t.Errorf("body %q, isBase64Encoded %v; want %q, %v", e["body"], e["isBase64Encoded"], tt.body, tt.encoded)
			}
		})
	}
}

// INV-45: the limit is that of the event, not of the body.
func TestEventLimit(t *testing.T) {
	bare, err := Encode(request(t, "POST / HTTP/1.1\nHost: x\nContent-Type: text/plain\nContent-Length: 1000000"), []byte("a"), source)
	if err != nil {
		t.Fatal(err)
	}
	fits := MaxEvent - len(bare) - 5 // 5: digits of the length
	r := request(t, "POST / HTTP/1.1\nHost: x\nContent-Type: text/plain\nContent-Length: 1000000")
	for n, want := range map[int]error{fits: nil, fits + 8: ErrTooLarge} {
		b, err := Encode(r, bytes.Repeat([]byte("a"), n), source)
		if !errors.Is(err, want) || len(b) > MaxEvent || err == nil && (cap(b) != len(b) || !json.Valid(b)) {
			t.Errorf("%d bytes of text: %d bytes in %d, %v; want %v", n, len(b), cap(b), err, want)
		}
	}
	if _, err := Encode(r, bytes.Repeat([]byte("\x01"), MaxEvent/6), source); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a sixth of the limit in control characters: %v", err)
	}
	if _, err := Encode(request(t, "POST / HTTP/1.1\nHost: x"), make([]byte, MaxEvent*3/4), source); !errors.Is(err, ErrTooLarge) {
		t.Errorf("three quarters of the limit in base64: %v", err)
	}
}

// FuzzEvent: every request that net/http accepts becomes a valid event that says the same.
func FuzzEvent(f *testing.F) {
	f.Add("GET", "/a%2Fb?c=d&e", "X-A", "b", "application/json", []byte("{}"))
	f.Add("POST", "/?a=%zz&a=;&=&%00", "Cookie", "a;;b=\xff", "text/plain", []byte("\x00\xff"))
	f.Add("PUT", "/\xc3\xbc\"<>?\xfc", "Connection", "x, y", "", []byte("\u2028\x7f"))
	f.Fuzz(func(t *testing.T, method, target, name, value, contentType string, body []byte) {
		head := method + " " + target + " HTTP/1.1\r\nHost: x\r\n" + name + ": " + value + "\r\nContent-Type: " + contentType + "\r\n\r\n"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
		if err != nil || !strings.HasPrefix(r.URL.Path, "/") {
			return
		}
		b, err := Encode(r, body, source)
		if err != nil {
			return // larger than the fuzzer's inputs are
		}
		var e struct {
			RawPath, RawQueryString, Body string
			Headers                       map[string]string
			IsBase64Encoded               bool
			RequestContext                struct{ HTTP struct{ Method string } }
		}
		if !utf8.Valid(b) {
			t.Fatalf("not UTF-8: %q", b)
		}
		if err := json.Unmarshal(b, &e); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		got := []byte(e.Body)
		if e.IsBase64Encoded {
			if got, err = base64.StdEncoding.DecodeString(e.Body); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, body) || e.RequestContext.HTTP.Method != r.Method || e.RawPath != r.URL.EscapedPath() {
			t.Errorf("%q became %s", head, b)
		}
		if n := bytes.Count(b, []byte(`,"x-forwarded-for":`)); n != 1 {
			t.Errorf("x-forwarded-for stands %d times in %s", n, b)
		}
	})
}
