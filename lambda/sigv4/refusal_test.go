package sigv4

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

// Each request is refused before its body is read, with a type that clients know and a
// message that says what is wrong.
func TestRefusals(t *testing.T) {
	const authorization = "Authorization"
	in := func(header, old, new string) func(*http.Request) {
		return func(r *http.Request) {
			if !strings.Contains(r.Header.Get(header), old) {
				panic("no " + old + " in " + r.Header.Get(header))
			}
			r.Header.Set(header, strings.Replace(r.Header.Get(header), old, new, 1))
		}
	}
	auth := func(old, new string) func(*http.Request) { return in(authorization, old, new) }
	set := func(name string, values ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header[name] = values }
	}
	target := func(old, new string) func(*http.Request) {
		return func(r *http.Request) {
			if !strings.Contains(r.RequestURI, old) {
				panic("no " + old + " in " + r.RequestURI)
			}
			r.RequestURI = strings.Replace(r.RequestURI, old, new, 1)
		}
	}
	const missing, unknown = "MissingAuthenticationTokenException", "UnrecognizedClientException"
	for name, tt := range map[string]struct {
		example string
		change  func(*http.Request)
		kind    string
		want    string // part of the message
	}{
		"unsigned":          {"plain", func(r *http.Request) { delete(r.Header, authorization) }, missing, "Missing Authentication Token"},
		"two headers":       {"plain", func(r *http.Request) { r.Header.Add(authorization, r.Header.Get(authorization)) }, incomplete, "has 2 Authorization headers"},
		"header and query":  {"presigned", set(authorization, "AWS4-HMAC-SHA256 Credential=a"), incomplete, "one in the query"},
		"another scheme":    {"plain", set(authorization, "Bearer verysecret"), incomplete, "Authorization header requires 'Credential' parameter. Authorization header requires 'Signature' parameter."},
		"empty header":      {"plain", set(authorization, ""), incomplete, "requires 'Credential'"},
		"another algorithm": {"plain", auth("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), incomplete, "'AWS4-ECDSA-P256-SHA256', use AWS4-HMAC-SHA256"},
		"no Signature":      {"plain", auth("Signature=", "Signature=;"), incomplete, "64 hexadecimal digits"},
		"empty Signature": {"plain", func(r *http.Request) {
			h := r.Header
			h.Set(authorization, h.Get(authorization)[:strings.Index(h.Get(authorization), "Signature=")+10])
		}, incomplete, "requires 'Signature'"},
		"no equals sign":    {"plain", auth("Signature=", "Signature"), incomplete, "missing equal-sign"},
		"unknown parameter": {"plain", auth("Signature=", "Signatur="), incomplete, "unknown parameter 'Signatur'"},
		"parameter twice":   {"plain", auth("Credential=", "Credential=a, Credential="), incomplete, "'Credential' twice"},
		"long header":       {"plain", auth("Credential=", "Credential="+strings.Repeat("a", maxAuthorization)), incomplete, "of at most 8192"},
		"signature in capitals": {"plain", func(r *http.Request) {
			a := r.Header.Get(authorization)
			r.Header.Set(authorization, a[:len(a)-64]+strings.ToUpper(a[len(a)-64:]))
		}, incomplete, "lower case"},
		"credential of four":          {"plain", auth("/us-east-1", ""), incomplete, "exactly 5 slash-delimited elements"},
		"credential of six":           {"plain", auth("/us-east-1", "/us-east-1/x"), incomplete, "exactly 5 slash-delimited elements"},
		"access key of no form":       {"plain", auth("AKIDEXAMPLE", "AKID EXAMPLE"), unknown, "security token"},
		"empty access key":            {"plain", auth("AKIDEXAMPLE", ""), unknown, "security token"},
		"region":                      {"plain", auth("us-east-1", "us-east-2"), invalid, "valid region, not 'us-east-2'. It is 'us-east-1' here"},
		"service":                     {"plain", auth("/lambda/", "/s3/"), invalid, "correct service: 'lambda'"},
		"terminator":                  {"plain", auth("aws4_request", "aws_request"), invalid, "valid terminator: 'aws4_request'"},
		"date of the scope":           {"plain", auth("/20261201/", "/20261202/"), invalid, "'20261202' != '20261201', from '20261201T120000Z'"},
		"no date":                     {"plain", func(r *http.Request) { delete(r.Header, "X-Amz-Date") }, incomplete, "existence of either a 'X-Amz-Date' or a 'Date' header"},
		"two dates":                   {"plain", set("X-Amz-Date", "20261201T120000Z", "20261201T120000Z"), incomplete, "2 headers x-amz-date"},
		"date of no form":             {"plain", set("X-Amz-Date", "2026-12-01T12:00:00Z"), incomplete, "Date must be in ISO-8601 'basic format'"},
		"HTTP's form in X-Amz-Date":   {"plain", set("X-Amz-Date", now.Format(http.TimeFormat)), incomplete, "'basic format'"},
		"host is not signed":          {"plain", auth("host;", ""), invalid, "'Host' or ':authority' must be"},
		"date is not signed":          {"plain", auth(";x-amz-date", ""), invalid, "'X-Amz-Date' must be"},
		"x-amz header is not signed":  {"plain", set("X-Amz-Invocation-Type", "Event"), invalid, "'X-Amz-Invocation-Type' must be"},
		"the same, presigned":         {"presigned", set("X-Amz-Invocation-Type", "Event"), invalid, "'X-Amz-Invocation-Type' must be"},
		"no SignedHeaders":            {"plain", auth("SignedHeaders=content-length;host;x-amz-date, ", ""), incomplete, "requires 'SignedHeaders'"},
		"SignedHeaders not sorted":    {"plain", auth("host;x-amz-date", "x-amz-date;host"), incomplete, "sorted"},
		"SignedHeaders with a double": {"plain", auth("host;x-amz-date", "host;host;x-amz-date"), incomplete, "each once"},
		"SignedHeaders in capitals":   {"plain", auth("host;x-amz-date", "Host;x-amz-date"), incomplete, "lower case"},
		"SignedHeaders with a gap":    {"plain", auth("host;x-amz-date", "host;;x-amz-date"), incomplete, "sorted"},
		"many SignedHeaders":          {"plain", auth("host;x-amz-date", "host"+strings.Repeat(";x", maxSigned)), incomplete, "more than 64"},
		"signed header is not there":  {"plain", auth("host;x-amz-date", "host;range;x-amz-date"), invalid, "'range', which is not in the request"},
		"large headers":               {"headers", set("X-Amz-Client-Context", strings.Repeat("x", maxCanonical)), invalid, "more than 98304 bytes"},
		"two tokens":                  {"headers", set("X-Amz-Security-Token", "a", "b"), incomplete, "2 headers x-amz-security-token"},
		"unsigned payload":            {"announced", set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"), invalid, "'UNSIGNED-PAYLOAD'. Payloads that are unsigned"},
		"chunked payload":             {"announced", set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), invalid, "signed in chunks"},
		"hash in capitals":            {"announced", set("X-Amz-Content-Sha256", strings.Repeat("A", 64)), invalid, "Send the SHA-256"},
		"empty hash":                  {"announced", set("X-Amz-Content-Sha256", ""), invalid, "Send the SHA-256"},
		"two hashes":                  {"announced", set("X-Amz-Content-Sha256", strings.Repeat("a", 64), strings.Repeat("a", 64)), invalid, "several values"},
		"hash in header and query":    {"presigned headers", target("?", "?X-Amz-Content-Sha256="+strings.Repeat("a", 64)+"&"), invalid, "several values"},
		"query in chunks":             {"presigned", target("?", "?X-Amz-Content-Sha256=UNSIGNED-PAYLOAD&"), invalid, "'UNSIGNED-PAYLOAD'"},
		"escape of no form":           {"no body", target("%2B", "%2g"), invalid, "'Marker=a%2gb'"},
		"path with dots":              {"plain", target("/hello/", "/./hello/"), invalid, "empty segment, or one that is ."},
		"path with more dots":         {"plain", target("/hello/", "/x/../hello/"), invalid, "empty segment"},
		"path with two slashes":       {"plain", target("/hello/", "//hello/"), invalid, "empty segment"},
		"path of two slashes":         {"plain", func(r *http.Request) { r.RequestURI = "//" }, invalid, "empty segment"},
		"absolute target":             {"plain", target("/2015", "http://127.0.0.1:9000/2015"), invalid, "The path 'http"},
		"target *":                    {"plain", func(r *http.Request) { r.RequestURI = "*" }, invalid, "The path '*'"},
		"long target":                 {"plain", func(r *http.Request) { r.RequestURI += "?a=" + strings.Repeat("x", maxTarget) }, invalid, "of at most 16384"},
		"many parameters":             {"plain", func(r *http.Request) { r.RequestURI += "?" + strings.Repeat("a&", maxParameters) }, invalid, "more than 256 parameters"},
		"presigned algorithm":         {"presigned", target("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), incomplete, "'AWS4-ECDSA-P256-SHA256'"},
		"presigned twice":             {"presigned", target("?", "?X-Amz-Expires=9&"), incomplete, "'X-Amz-Expires' twice"},
		"presigned, escaped name":     {"presigned", target("?", "?X%2DAmz-Expires=9&"), incomplete, "'X-Amz-Expires' twice"},
		"presigned without expiry":    {"presigned", target("X-Amz-Expires=60", "a"), incomplete, "must include 'X-Amz-Expires'"},
		"presigned without signature": {"presigned", target("X-Amz-Signature=", "a="), incomplete, "must include 'X-Amz-Signature'"},
		"expires at once":             {"presigned", target("X-Amz-Expires=60", "X-Amz-Expires=0"), incomplete, "from 1 to 604800, got '0'"},
		"expires after a week":        {"presigned", target("X-Amz-Expires=60", "X-Amz-Expires=604801"), incomplete, "from 1 to 604800"},
		"expires before":              {"presigned", target("X-Amz-Expires=60", "X-Amz-Expires=-60"), incomplete, "from 1 to 604800"},
		"expires in letters":          {"presigned", target("X-Amz-Expires=60", "X-Amz-Expires=1e3"), incomplete, "from 1 to 604800"},
		"presigned host":              {"presigned", target("content-length%3Bhost", "content-length"), invalid, "'Host' or ':authority' must be"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := received(examples[tt.example].sign(t))
			if err != nil {
				t.Fatal(err)
			}
			tt.change(r)
			_, err = Parse(r, now, scope)
			var e *Error
			if !errors.As(err, &e) || e.Type != tt.kind || e.Status != http.StatusForbidden || !strings.Contains(strings.ToLower(e.Message), strings.ToLower(tt.want)) {
				t.Errorf("error %#v, want %s with %q", err, tt.kind, tt.want)
			}
			if e != nil && (strings.Contains(e.Message, "verysecret") || len(e.Message) > 1000) {
				t.Errorf("message of %d bytes: %s", len(e.Message), e.Message)
			}
			if unsigned := errors.Is(err, ErrUnsigned); unsigned != (tt.kind == missing) {
				t.Errorf("ErrUnsigned: %v", unsigned)
			}
		})
	}
}
