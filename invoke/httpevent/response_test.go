package httpevent

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// INV-46 to INV-49. What is marked as recorded was measured on AWS.
func TestResponse(t *testing.T) {
	plain := http.Header{"Content-Type": {"application/json"}}
	for name, tt := range map[string]struct {
		answer string
		status int
		header http.Header
		body   string
	}{
		"object (recorded)":           {`{"hello": "world"}`, 200, plain, `{"hello":"world"}`},
		"array (recorded)":            {`["hello", 3, true]`, 200, plain, `["hello",3,true]`},
		"string (recorded)":           {`"hello"`, 200, plain, `hello`},
		"number (recorded)":           {"3.1\n", 200, plain, `3.1`},
		"boolean (recorded)":          {`true`, 200, plain, `true`},
		"null":                        {`null`, 200, plain, `null`},
		"escapes":                     {`"a\n\u00fc"`, 200, plain, "a\nü"},
		"status and body (recorded)":  {`{"statusCode": 200, "body": "{\"hello\": \"world\"}"}`, 200, plain, `{"hello": "world"}`},
		"status in text (recorded)":   {`{"statusCode": "418", "body": "i'm a teapot"}`, 418, plain, `i'm a teapot`},
		"status only":                 {`{"statusCode": 204}`, 204, plain, ``},
		"status of a calculation":     {`{"statusCode": 404.0}`, 404, plain, ``},
		"status with an exponent":     {`{"statusCode": 2.01e2}`, 201, plain, ``},
		"status null":                 {`{"statusCode": null}`, 200, plain, `{"statusCode":null}`},
		"other case":                  {`{"StatusCode": 500}`, 200, plain, `{"StatusCode":500}`},
		"escaped name":                {`{"status\u0043ode": 500}`, 500, plain, ``},
		"status twice":                {`{"statusCode": 500, "statusCode": 404}`, 404, plain, ``},
		"status inside":               {`{"a": {"statusCode": 500}}`, 200, plain, `{"a":{"statusCode":500}}`},
		"no body":                     {`{"statusCode": 200, "body": null}`, 200, plain, ``},
		"no body, in base64":          {`{"statusCode": 200, "body": null, "isBase64Encoded": true}`, 200, plain, ``},
		"body that is no string":      {`{"statusCode": 200, "body": {"a": [1, 2]}}`, 200, plain, `{"a":[1,2]}`},
		"base64":                      {`{"statusCode":200,"body":"AP+ACg==","isBase64Encoded":true}`, 200, plain, "\x00\xff\x80\n"},
		"base64 with escapes":         {`{"statusCode":200,"body":"AP+ACg\u003d=","isBase64Encoded":true}`, 200, plain, "\x00\xff\x80\n"},
		"not base64":                  {`{"statusCode":200,"body":"AA==","isBase64Encoded":false}`, 200, plain, "AA=="},
		"headers":                     {`{"statusCode":201,"headers":{"content-type":"text/html","my-number":7,"my-null":null,"my-bool":true}}`, 201, http.Header{"Content-Type": {"text/html"}, "My-Number": {"7"}, "My-Bool": {"true"}}, ""},
		"headers of the connection":   {`{"statusCode":200,"headers":{"Connection":"close","Transfer-Encoding":"chunked","keep-alive":"1","Upgrade":"x","Content-Length":"999999"}}`, 200, plain, ""},
		"cookies":                     {`{"statusCode":200,"cookies":["a=b; Max-Age=7","c=d"]}`, 200, http.Header{"Content-Type": {"application/json"}, "Set-Cookie": {"a=b; Max-Age=7", "c=d"}}, ""},
		"cookie in a header":          {`{"statusCode":200,"headers":{"set-cookie":"a=b"},"cookies":["c=d"]}`, 200, http.Header{"Content-Type": {"application/json"}, "Set-Cookie": {"a=b", "c=d"}}, ""},
		"headers of another format":   {`{"statusCode":200,"multiValueHeaders":{"a":["b"]}}`, 200, plain, ""},
		"white space":                 {" \n{ \"statusCode\" : 200 , \"body\" : \"a\" , \"headers\" : { } }\t", 200, plain, "a"},
		"braces and quotes in values": {`{"x":"}\\\"{","y":[{"statusCode":500}],"statusCode":202,"body":"}{\\"}`, 202, plain, `}{\`},
		"null for headers":            {`{"statusCode":200,"headers":null,"cookies":null}`, 200, plain, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := ParseResponse([]byte(tt.answer))
			if err != nil {
				t.Fatal(err)
			}
			if r.Status != tt.status || string(r.Body) != tt.body || !maps.EqualFunc(r.Header, tt.header, slices.Equal) {
				t.Errorf("%d %v %q; want %d %v %q", r.Status, r.Header, r.Body, tt.status, tt.header, tt.body)
			}
		})
	}
}

// INV-50: what is not a response is an error that says what to change.
func TestResponseErrors(t *testing.T) {
	for name, tt := range map[string]struct{ answer, want string }{
		"nothing":              {"", "not JSON"},
		"HTML":                 {"<html>", "not JSON"},
		"half":                 {`{"statusCode":200`, "not JSON"},
		"informational status": {`{"statusCode":100}`, "statusCode 100: must be a number from 200 to 599"},
		"large status":         {`{"statusCode":600}`, "from 200 to 599"},
		"status of a word":     {`{"statusCode":"OK"}`, "from 200 to 599"},
		"status of a fraction": {`{"statusCode":200.5}`, "from 200 to 599"},
		"status of an object":  {`{"statusCode":{"a":` + strings.Repeat("1", 1000) + `}}`, "from 200 to 599"},
		"headers of a list":    {`{"statusCode":200,"headers":["a"]}`, "headers: must be an object"},
		"value of a list":      {`{"statusCode":200,"headers":{"a":["b"]}}`, "the value of a must be a string"},
		"line end in a value":  {`{"statusCode":200,"headers":{"a":"b\r\nSet-Cookie: c"}}`, "the value of a has a character"},
		"line end in a name":   {`{"statusCode":200,"headers":{"a\nb":"c"}}`, "not the name of a header"},
		"colon in a name":      {`{"statusCode":200,"headers":{"a:":"c"}}`, "not the name of a header"},
		"no name":              {`{"statusCode":200,"headers":{"":"c"}}`, "not the name of a header"},
		"cookies of an object": {`{"statusCode":200,"cookies":{"a":"b"}}`, "cookies: must be an array"},
		"line end in a cookie": {`{"statusCode":200,"cookies":["a\nb"]}`, "has a character"},
		"wrong base64":         {`{"statusCode":200,"body":"a","isBase64Encoded":true}`, "not base64"},
		"base64 of an object":  {`{"statusCode":200,"body":{},"isBase64Encoded":true}`, "body is not a string"},
		"endless headers":      {`{"statusCode":200,"headers":{"a":"` + strings.Repeat("b", MaxHead) + `"}}`, "at most 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			if r, err := ParseResponse([]byte(tt.answer)); err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 200 {
				t.Errorf("%+v, %v; want an error with %q", r, err, tt.want)
			}
		})
	}
}

// The Content-Length of the function is kept apart: it is right for HEAD only (INV-49).
func TestResponseLength(t *testing.T) {
	r, err := ParseResponse([]byte(`{"statusCode":200,"headers":{"content-length":"12"}}`))
	if err != nil || r.Length != "12" {
		t.Errorf("%+v, %v", r, err)
	}
}

// INV-51: a prelude in pieces of every size.
func TestPrelude(t *testing.T) {
	const answer = `{"statusCode":201,"headers":{"a":"b"},"cookies":["c=d"]}` + "\x00\x00\x00\x00\x00\x00\x00\x00" + "body"
	for size := 1; size <= len(answer); size++ {
		var p Prelude
		if !p.Empty() {
			t.Error("a new prelude is not empty")
		}
		for rest := []byte(answer); ; rest = rest[size:] {
			r, after, err := p.Add(rest[:min(size, len(rest))])
			if err != nil {
				t.Fatal(err)
			}
			if r == nil {
				continue
			}
			body := string(after) + string(rest[min(size, len(rest)):])
			if r.Status != 201 || r.Header.Get("A") != "b" || r.Header.Get("Set-Cookie") != "c=d" || r.Header.Get("Content-Type") != StreamType || body != "body" {
				t.Errorf("pieces of %d: %+v, body %q", size, r, body)
			}
			break
		}
	}
	for name, text := range map[string]string{"no JSON": "x", "no object": "[]", "wrong status": `{"statusCode":1}`} {
		var p Prelude
		if r, _, err := p.Add([]byte(text + string(delimiter))); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	var p Prelude
	if r, _, err := p.Add(make([]byte, 7)); r != nil || err != nil {
		t.Errorf("seven NUL bytes: %+v, %v", r, err)
	}
	var long Prelude
	if _, _, err := long.Add([]byte(`{"a":"` + strings.Repeat("a", MaxHead) + `"}` + string(delimiter))); err == nil {
		t.Error("a prelude that is too long is no error")
	}
	var endless Prelude
	if _, _, err := endless.Add([]byte(strings.Repeat(" ", MaxHead+1))); err == nil {
		t.Error("a prelude without an end is no error")
	}
}

// FuzzResponse compares what is taken from an answer with what encoding/json finds in it.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{`{"statusCode":200,"body":"a","headers":{"b":"c"},"cookies":["d"]}`, `{"statusCode":"204"}`, `[1,{"a":"}"}]`,
		`{"statusCode":200,"isBase64Encoded":true,"body":"AAAA"}`, `"a\u0000"`, `{"a\\":"\"","statusCode" : 404 }`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		r, err := ParseResponse(answer)
		if err != nil {
			return
		}
		if r.Status < 200 || r.Status > 599 || r.Header.Get("Content-Type") == "" && len(r.Header["Content-Type"]) == 0 {
			t.Fatalf("%+v", r)
		}
		for name, values := range r.Header {
			for _, v := range values {
				if strings.ContainsAny(name+v, "\r\n\x00") {
					t.Fatalf("header %q: %q", name, v)
				}
			}
		}
		var all map[string]any
		if json.Unmarshal(answer, &all) != nil || all == nil {
			return
		}
		if want, ok := all["statusCode"].(float64); ok && float64(r.Status) != want {
			t.Errorf("status %d, want %v", r.Status, want)
		}
		if _, ok := all["statusCode"]; !ok && r.Status != 200 {
			t.Errorf("status %d of an answer without one", r.Status)
		}
		if want, ok := all["body"].(string); ok && all["statusCode"] != nil && all["isBase64Encoded"] != true && strings.ToValidUTF8(string(r.Body), "\uFFFD") != strings.ToValidUTF8(want, "\uFFFD") {
			t.Errorf("body %q, want %q", r.Body, want)
		}
	})
}
