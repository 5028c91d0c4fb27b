package worker

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
)

const (
	testARN    = "arn:aws:lambda:us-east-1:123456789012:function:a"
	testSecret = "secret"
)

var testScope = sigv4.Scope{Region: "us-east-1", Service: "lambda"}

// sign signs a request, of which RequestURI and Host are set, at a time. With announce it has
// the hash of the body in a header.
func sign(t *testing.T, r *http.Request, id, secret, body string, announce bool, at time.Time) {
	t.Helper()
	day := at.UTC().Format("20060102")
	r.Header.Set("X-Amz-Date", at.UTC().Format("20060102T150405Z"))
	names := "host;x-amz-date"
	if announce {
		sum := sha256.Sum256([]byte(body))
		r.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))
		names = "host;x-amz-content-sha256;x-amz-date"
	}
	head := "AWS4-HMAC-SHA256 Credential=" + id + "/" + day + "/us-east-1/lambda/aws4_request, SignedHeaders=" + names + ", Signature="
	r.Header.Set("Authorization", head+strings.Repeat("0", 64))
	s, err := sigv4.Parse(r, at, testScope)
	if err == nil {
		err = s.Payload([]byte(body))
	}
	if err != nil {
		t.Fatal(err)
	}
	h := hmac.New(sha256.New, sigv4.DeriveKey(secret, day, "us-east-1", "lambda"))
	io.WriteString(h, s.StringToSign())
	r.Header.Set("Authorization", head+hex.EncodeToString(h.Sum(nil)))
}

// newInvocation returns a request as the endpoint gets it.
func newInvocation(t *testing.T, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1:9000/2015-03-31/functions/a/invocations", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.RequestURI = "/2015-03-31/functions/a/invocations"
	return r
}

// keys are the access keys of a test: AKADMIN may do all, AKINVOKE may invoke the function a.
func verifyKeys(asked *int, until func() time.Time) func(context.Context, message.Verify) (message.Verdict, error) {
	return func(_ context.Context, v message.Verify) (message.Verdict, error) {
		*asked++
		if v.AccessKeyID != "AKADMIN" && v.AccessKeyID != "AKINVOKE" {
			return message.Verdict{}, nil
		}
		key := sigv4.DeriveKey(testSecret, v.Date, v.Region, v.Service)
		verdict := message.Verdict{Exists: true, Known: v.Signature != "" && sigv4.Matches(key, v.StringToSign, v.Signature)}
		verdict.Allowed = verdict.Known && v.Action == invokeAction && (v.AccessKeyID == "AKADMIN" || v.ARN == testARN)
		if verdict.Allowed && v.AccessKeyID == "AKINVOKE" {
			verdict.Key, verdict.Until = key, until()
		}
		return verdict, nil
	}
}

// try authorizes a request with its body as the endpoint does, and returns the type of the
// refusal, or "".
func try(t *testing.T, a *authorizer, r *http.Request, arn, body string) (refusal string, beforeBody bool) {
	t.Helper()
	check, err := a.invocation(r, arn)
	beforeBody = err != nil
	if err == nil && check != nil {
		err = check([]byte(body))
	}
	if err == nil {
		return "", false
	}
	fault, ok := errors.AsType[*invoke.Fault](err)
	if !ok {
		return err.Error(), beforeBody
	}
	return fault.Type, beforeBody
}

func TestAuthorizer(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name, id, secret, arn string
		body                  string // that is sent; {} is signed
		want                  string
		beforeBody            [2]bool // it is refused before the body is read: without and with its hash announced
	}{
		{name: "an admin", id: "AKADMIN"},
		{name: "one who may only invoke", id: "AKINVOKE"},
		{name: "another function", id: "AKINVOKE", arn: testARN + "b", want: "AccessDeniedException", beforeBody: [2]bool{false, true}},
		{name: "no function", id: "AKINVOKE", arn: "none"},
		{name: "an unknown key", id: "AKNONE", want: "UnrecognizedClientException", beforeBody: [2]bool{true, true}},
		{name: "a wrong secret", id: "AKADMIN", secret: "x", want: "InvalidSignatureException", beforeBody: [2]bool{false, true}},
		{name: "another body", id: "AKADMIN", body: "[]", want: "InvalidSignatureException"},
		{name: "another body of one who may only invoke", id: "AKINVOKE", body: "[]", want: "InvalidSignatureException"},
	} {
		for i, announce := range []bool{false, true} {
			asked := 0
			a := &authorizer{scope: testScope, now: func() time.Time { return now }, verify: verifyKeys(&asked, func() time.Time { return now.Add(time.Hour) })}
			secret, arn, body := tt.secret, tt.arn, tt.body
			if secret == "" {
				secret = testSecret
			}
			if arn == "" {
				arn = testARN
			}
			if arn == "none" {
				arn = ""
			}
			if body == "" {
				body = "{}"
			}
			for range 3 { // also with what is remembered
				r := newInvocation(t, body)
				sign(t, r, tt.id, secret, "{}", announce, now)
				got, before := try(t, a, r, arn, body)
				if got != tt.want || before != (tt.beforeBody[i] && tt.want != "") {
					t.Errorf("%s, announced %v: %q before the body %v, want %q, %v", tt.name, announce, got, before, tt.want, tt.beforeBody[i])
				}
			}
		}
	}
}

// Control is asked once for what a key of one that may only invoke allows, until the time that it
// has given, and for each signature of others. A key that allows one function allows no other.
func TestAuthorizerAsksControl(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	asked := 0
	a := &authorizer{scope: testScope, now: func() time.Time { return now }, verify: verifyKeys(&asked, func() time.Time { return now.Add(time.Hour) })}
	runs := func(what, id, arn string, announce bool, want string, questions int) {
		t.Helper()
		asked = 0
		r := newInvocation(t, "{}")
		sign(t, r, id, testSecret, "{}", announce, now)
		if got, _ := try(t, a, r, arn, "{}"); got != want || asked != questions {
			t.Errorf("%s: %q after %d questions, want %q after %d", what, got, asked, want, questions)
		}
	}
	runs("the first", "AKINVOKE", testARN, false, "", 2) // one before the body, one after
	runs("the second", "AKINVOKE", testARN, false, "", 0)
	runs("with the hash", "AKINVOKE", testARN, true, "", 0)
	runs("another function", "AKINVOKE", testARN+"b", true, "AccessDeniedException", 1)
	runs("the first again", "AKINVOKE", testARN, true, "", 0)
	now = now.Add(2 * time.Hour)
	runs("after its time", "AKINVOKE", testARN, true, "", 1)
	runs("the first of an admin", "AKADMIN", testARN, false, "", 2)
	runs("the second of an admin", "AKADMIN", testARN, false, "", 1)
	runs("an admin, with the hash", "AKADMIN", testARN, true, "", 1)

	a.verify = func(context.Context, message.Verify) (message.Verdict, error) {
		return message.Verdict{}, errControl
	}
	runs("one who may only invoke, without control", "AKINVOKE", testARN, true, "", 0)
	runs("an admin, without control", "AKADMIN", testARN, true, "ServiceException", 0)
}

func TestUnsigned(t *testing.T) {
	for _, tt := range []struct {
		host     string
		unsigned bool
		want     string
	}{
		{"127.0.0.1:9000", true, ""},
		{"localhost:9000", true, ""},
		{"LOCALHOST", true, ""},
		{"[::1]:9000", true, ""},
		{"127.0.0.1:9000", false, "MissingAuthenticationTokenException"},
		{"evil.example:9000", true, "AccessDeniedException"},
		{"127.0.0.1.evil.example", true, "AccessDeniedException"},
		{"control.internal", true, "AccessDeniedException"},
		{"Control.Internal.:80", true, "AccessDeniedException"},
		{"worker.internal", false, "AccessDeniedException"},
	} {
		a := &authorizer{scope: testScope, now: time.Now, unsigned: tt.unsigned}
		r := newInvocation(t, "{}")
		r.Host = tt.host
		if got, _ := try(t, a, r, testARN, "{}"); got != tt.want {
			t.Errorf("%s, unsigned requests allowed %v: %q, want %q", tt.host, tt.unsigned, got, tt.want)
		}
	}
	// A signature that is there must be right, also where none is needed.
	asked := 0
	a := &authorizer{scope: testScope, now: time.Now, unsigned: true, verify: verifyKeys(&asked, time.Now)}
	r := newInvocation(t, "{}")
	sign(t, r, "AKADMIN", "wrong", "{}", true, time.Now())
	if got, _ := try(t, a, r, testARN, "{}"); got != "InvalidSignatureException" {
		t.Errorf("a wrong signature where none is needed: %q", got)
	}
	// Nor is a session token taken: there are no temporary keys.
	r = newInvocation(t, "{}")
	r.Header.Set("X-Amz-Security-Token", "token")
	r.Header.Set("X-Amz-Date", time.Now().UTC().Format("20060102T150405Z"))
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKADMIN/"+time.Now().UTC().Format("20060102")+
		"/us-east-1/lambda/aws4_request, SignedHeaders=host;x-amz-date;x-amz-security-token, Signature="+strings.Repeat("0", 64))
	if got, _ := try(t, a, r, testARN, "{}"); got != "UnrecognizedClientException" {
		t.Errorf("a session token: %q", got)
	}
}

// A signed invocation of a function that is not known yet, over a connection that serves hot
// requests: learned, verified, invoked.
func TestSignedInvocation(t *testing.T) {
	f, c := newLearner(t, nil)
	defer f.finish(t)
	c.update("a")
	asked := 0
	a := &authorizer{scope: testScope, now: time.Now, verify: verifyKeys(&asked, func() time.Time { return time.Now().Add(time.Hour) })}
	server := invoke.New(invoke.Config{Functions: f, Region: "us-east-1", AccountID: "123456789012", Authorize: a.invocation, NoEvents: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	for i, tt := range []struct {
		id, secret, signed, want string
		announce                 bool
	}{
		{"AKINVOKE", testSecret, "{}", "200 1", false},
		{"AKINVOKE", testSecret, "{}", "200 1", true},
		{"AKADMIN", testSecret, "{}", "200 1", false},
		{"AKINVOKE", testSecret, "[]", "403 InvalidSignatureException", false},
		{"AKADMIN", "wrong", "{}", "403 InvalidSignatureException", false},
		{"AKINVOKE", testSecret, "{}", "200 1", false},
		{"AKNONE", testSecret, "{}", "403 UnrecognizedClientException", true},
	} {
		r := newInvocation(t, "{}")
		sign(t, r, tt.id, tt.secret, tt.signed, tt.announce, time.Now())
		if err := r.Write(conn); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(answers, r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		got := res.Header.Get("X-Amzn-Errortype")
		if res.StatusCode == http.StatusOK {
			got = string(body)
		}
		if got = res.Status[:4] + got; err != nil || got != tt.want {
			t.Errorf("request %d: %s, %v; want %s", i, got, err, tt.want)
		}
	}
}
