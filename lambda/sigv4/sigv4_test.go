package sigv4

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	signer "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"

var (
	now   = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	scope = Scope{Region: "us-east-1", Service: "lambda"}
)

// example is a request to sign.
type example struct {
	method, target, body string
	header               http.Header
	announce             bool          // the hash of the body, in x-amz-content-sha256
	expires              time.Duration // of a presigned URL
	at                   time.Time     // of the signature; now if it is zero
}

// examples are what the SDK for Go signs.
var examples = map[string]example{
	"plain":           {method: "POST", target: "/2015-03-31/functions/hello/invocations", body: `{"a":1}`},
	"announced":       {method: "POST", target: "/2015-03-31/functions/hello/invocations", body: `{"a":1}`, announce: true},
	"no body":         {method: "GET", target: "/2015-03-31/functions/?MaxItems=3&Marker=a%2Bb"},
	"ARN":             {method: "GET", target: "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Ahello/configuration?Qualifier=%24LATEST"},
	"slash in a name": {method: "DELETE", target: "/2017-03-31/tags/a%2Fb?tagKeys=z&tagKeys=a&tagKeys=&x"},
	"not ASCII":       {method: "PUT", target: "/x/%C3%BC%20%E1%88%B4?k%C3%BC=v%20w&%E1%88%B4=1", body: "\x00\xff"},
	"not escaped":     {method: "GET", target: "/x/a:b@c$d=e,f!(g)*'?q=(a)!*'"},
	"headers": {method: "POST", target: "/", body: "x", header: http.Header{"X-Amz-Client-Context": {"  a   b  "}, "Content-Type": {"application/json"},
		"My-Repeated": {"b", " a", ""}, "My-Name": {"ü\u1234"}, "X-Amz-Empty": {""}, "X-Amz-Security-Token": {"token"}}},
	"presigned":         {method: "POST", target: "/2015-03-31/functions/hello/invocations?Qualifier=1", body: "{}", expires: time.Minute},
	"presigned headers": {method: "POST", target: "/a", body: "{}", announce: true, expires: 7 * 24 * time.Hour, header: http.Header{"X-Amz-Meta-A": {"b"}}},
}

// sign makes the bytes of a signed request, as they come on a connection.
func (e example) sign(t testing.TB) []byte {
	t.Helper()
	u, err := url.ParseRequestURI("http://127.0.0.1:9000" + e.target)
	if err != nil {
		t.Fatal(err)
	}
	r := &http.Request{Method: e.method, URL: u, Host: u.Host, Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		ContentLength: int64(len(e.body)), Body: io.NopCloser(strings.NewReader(e.body))}
	for name, values := range e.header {
		r.Header[name] = values
	}
	sum := sha256.Sum256([]byte(e.body))
	hash := hex.EncodeToString(sum[:])
	if e.announce {
		r.Header.Set("X-Amz-Content-Sha256", hash)
	}
	if e.at.IsZero() {
		e.at = now
	}
	credentials := aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: secret}
	if e.expires == 0 {
		if err := signer.NewSigner().SignHTTP(context.Background(), credentials, r, hash, "lambda", "us-east-1", e.at); err != nil {
			t.Fatal(err)
		}
	} else {
		u.RawQuery += "&X-Amz-Expires=" + fmt.Sprint(int(e.expires.Seconds()))
		signed, header, err := signer.NewSigner().PresignHTTP(context.Background(), credentials, r, hash, "lambda", "us-east-1", e.at)
		if err != nil {
			t.Fatal(err)
		}
		if r.URL, err = url.Parse(signed); err != nil {
			t.Fatal(err)
		}
		delete(header, "Host")
		r.Header, e.target = header, r.URL.RequestURI()
	}
	// Not Request.Write, which leaves headers out.
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, e.target, r.Host)
	if r.Header["Content-Length"] == nil && e.body != "" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(e.body))
	}
	for name, values := range r.Header {
		for _, v := range values {
			fmt.Fprintf(&b, "%s: %s\r\n", name, v)
		}
	}
	fmt.Fprintf(&b, "\r\n%s", e.body)
	return b.Bytes()
}

// received reads a request as a server does.
func received(wire []byte) (*http.Request, error) {
	return http.ReadRequest(bufio.NewReader(bytes.NewReader(wire)))
}

// verify does what a caller does, and returns the body.
func verify(r *http.Request, now time.Time) ([]byte, error) {
	s, err := Parse(r, now, scope)
	if err != nil {
		return nil, err
	}
	key := DeriveKey(secret, s.Date, s.Region, s.Service)
	if early := s.Ready(); early && !s.Verify(key) {
		return nil, ErrMismatch
	} else if !early && s.Verify(key) {
		return nil, errors.New("verified before the body was read")
	}
	body, err := io.ReadAll(s.Body(r.Body))
	if err != nil {
		return nil, err
	}
	if s.AccessKeyID != "AKIDEXAMPLE" || !s.Verify(key) {
		return nil, ErrMismatch
	}
	return body, nil
}

func TestAcceptsSignerOfGo(t *testing.T) {
	for name, e := range examples {
		t.Run(name, func(t *testing.T) {
			r, err := received(e.sign(t))
			if err != nil {
				t.Fatal(err)
			}
			body, err := verify(r, now)
			if err != nil || string(body) != e.body {
				t.Errorf("body %q, %v; want %q", body, err, e.body)
			}
		})
	}
}

// The signature is ready before the body is read only if that can be.
func TestReady(t *testing.T) {
	for name, want := range map[string]bool{"plain": false, "announced": true, "no body": true, "presigned": false, "presigned headers": true} {
		r, err := received(examples[name].sign(t))
		if err != nil {
			t.Fatal(err)
		}
		s, err := Parse(r, now, scope)
		if err != nil {
			t.Fatal(err)
		}
		if s.Ready() != want || (s.StringToSign() != "") != want {
			t.Errorf("%s: ready %v, string to sign %q; want %v", name, s.Ready(), s.StringToSign(), want)
		}
		if err := s.Payload([]byte(examples[name].body)); err != nil || !s.Verify(DeriveKey(secret, s.Date, s.Region, s.Service)) {
			t.Errorf("%s: %v with the body, or not verified", name, err)
		}
	}
}

func TestOtherBody(t *testing.T) {
	for _, name := range []string{"plain", "announced", "no body", "presigned headers"} {
		r, err := received(examples[name].sign(t))
		if err != nil {
			t.Fatal(err)
		}
		s, err := Parse(r, now, scope)
		if err != nil {
			t.Fatal(err)
		}
		known := s.Ready()
		if _, err := io.ReadAll(s.Body(strings.NewReader("another"))); known != errors.Is(err, ErrPayload) {
			t.Errorf("%s: %v at the end of another body", name, err)
		}
		if !known && s.Verify(DeriveKey(secret, s.Date, s.Region, s.Service)) {
			t.Errorf("%s: verified with another body", name)
		}
	}
}

// A body that breaks off is not taken for a whole one.
func TestBrokenBody(t *testing.T) {
	r, err := received(examples["plain"].sign(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(r, now, scope)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	body := s.Body(io.MultiReader(strings.NewReader(`{"a":1}`), errReader{broken}))
	for range 2 {
		if _, err := io.ReadAll(body); err != broken || s.Ready() {
			t.Errorf("%v, ready %v; want the error of the body", err, s.Ready())
		}
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestKeyOfAnotherScope(t *testing.T) {
	r, err := received(examples["announced"].sign(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(r, now, scope)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range [][]byte{nil, {}, DeriveKey(secret, "20261130", s.Region, s.Service), DeriveKey(secret, s.Date, "eu-west-1", s.Service),
		DeriveKey(secret, s.Date, s.Region, "s3"), DeriveKey("other", s.Date, s.Region, s.Service)} {
		if s.Verify(key) {
			t.Errorf("verified with key %x", key)
		}
	}
	if !Matches(DeriveKey(secret, s.Date, s.Region, s.Service), s.StringToSign(), s.Hex()) {
		t.Error("the parts of the signature do not match")
	}
}

// Dates: ± 5 minutes, and a presigned URL until it expires.
func TestDates(t *testing.T) {
	const plain, presigned = time.Duration(0), time.Hour
	for _, tt := range []struct {
		expires, age time.Duration
		want         string // of the error
	}{
		{plain, 5 * time.Minute, ""},
		{plain, 5*time.Minute + time.Second, "Signature expired: 20261201T115459Z is now earlier than 20261201T115500Z (20261201T120000Z - 5 min.)"},
		{plain, -5 * time.Minute, ""},
		{plain, -5*time.Minute - time.Second, "Signature not yet current: 20261201T120501Z is still later than 20261201T120500Z (20261201T120000Z + 5 min.)"},
		{presigned, time.Hour, ""},
		{presigned, time.Hour + time.Second, "Signature expired: 20261201T115959Z is now earlier than 20261201T120000Z"},
		{presigned, -5 * time.Minute, ""},
		{presigned, -5*time.Minute - time.Second, "Signature not yet current"},
		{7 * 24 * time.Hour, 7 * 24 * time.Hour, ""},
	} {
		e := examples["plain"]
		e.expires, e.at = tt.expires, now.Add(-tt.age)
		r, err := received(e.sign(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = verify(r, now); (err == nil) != (tt.want == "") || err != nil && !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("age %v, expires %v: %v; want %q", tt.age, tt.expires, err, tt.want)
		}
	}
}

// The header Date is taken if there is no X-Amz-Date, in the form of HTTP too.
func TestDateHeader(t *testing.T) {
	for _, date := range []string{now.Format(http.TimeFormat), now.Format(isoBasic)} {
		r, err := received(examples["announced"].sign(t))
		if err != nil {
			t.Fatal(err)
		}
		delete(r.Header, "X-Amz-Date")
		r.Header.Set("Date", date)
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "content-length;", "content-length;date;", 1))
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), ";x-amz-date", "", 1))
		s, err := Parse(r, now, scope)
		if err != nil {
			t.Fatal(err)
		}
		if want := algorithm + "\n" + now.Format(isoBasic) + "\n20261201/us-east-1/lambda/aws4_request\n"; !strings.HasPrefix(s.StringToSign(), want) {
			t.Errorf("string to sign %q, want it to begin with %q", s.StringToSign(), want)
		}
	}
}

func TestKeys(t *testing.T) {
	var k Keys
	use := func(i int) Use { return Use{AccessKeyID: fmt.Sprint(i), Date: "20261201"} }
	if k.Get(use(0), now) != nil {
		t.Error("an empty cache has a key")
	}
	for i := range 2 * maxKeys {
		k.Put(use(i), []byte{1}, now, now.Add(time.Hour))
		if k.Get(use(i), now) == nil {
			t.Fatalf("key %d is not there after Put", i)
		}
	}
	if len(k.keys) > maxKeys {
		t.Errorf("%d keys, want at most %d", len(k.keys), maxKeys)
	}
	last := use(2*maxKeys - 1)
	if k.Get(last, now.Add(time.Hour)) != nil {
		t.Error("a key is there when it has expired")
	}
	one := Use{AccessKeyID: "one"}
	k.Put(one, []byte{2}, now.Add(time.Hour), now.Add(2*time.Hour))
	if len(k.keys) != 1 {
		t.Errorf("%d keys after all others expired, want 1", len(k.keys))
	}
	other := one
	other.Action, other.ARN = "lambda:InvokeFunction", "arn"
	if k.Get(other, now) != nil {
		t.Error("a key is there for another use")
	}
	k.Forget("one")
	if k.Get(one, now) != nil {
		t.Error("a key is there when it was forgotten")
	}
}

// What a signed invocation of 1 KB costs: all but the derivation of the key, which is
// remembered.
func BenchmarkVerify(b *testing.B) {
	body := strings.Repeat("x", 1<<10)
	for name, e := range map[string]example{
		"botocore":  {method: "POST", target: "/2015-03-31/functions/hello/invocations", body: body},
		"announced": {method: "POST", target: "/2015-03-31/functions/hello/invocations", body: body, announce: true},
	} {
		r, err := received(e.sign(b))
		if err != nil {
			b.Fatal(err)
		}
		payload := []byte(body)
		key := DeriveKey(secret, "20261201", "us-east-1", "lambda")
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s, err := Parse(r, now, scope)
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Payload(payload); err != nil || !s.Verify(key) {
					b.Fatal(err, "not verified")
				}
			}
		})
	}
}
