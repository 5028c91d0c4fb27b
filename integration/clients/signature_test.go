//go:build integration

package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
)

// The signatures of unmodified clients, which lambda/sigv4 must accept. Its own tests have
// the SDK for Go's signer, and what must be refused.

const (
	signatureKey    = "AKSDAAAAAAAAAAAAAAAA"
	signatureSecret = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567ABCDEFGH"
)

// signatureServer answers each request with {}, or what is wrong with its signature.
type signatureServer struct {
	*httptest.Server
	mu       sync.Mutex
	verified []string // method and path of each request whose signature is right
	refused  []string
}

func startSignatureServer(t *testing.T) *signatureServer {
	s := &signatureServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := verifySignature(r)
		s.mu.Lock()
		defer s.mu.Unlock()
		request := r.Method + " " + r.RequestURI
		if err != nil {
			s.refused = append(s.refused, fmt.Sprintf("%s: %v, of %q", request, err, r.Header))
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		s.verified = append(s.verified, request)
		io.WriteString(w, "{}")
	}))
	t.Cleanup(s.Close)
	return s
}

// want wants that a client's requests were all verified.
func (s *signatureServer) want(t *testing.T, requests ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.refused {
		t.Errorf("refused %s", r)
	}
	for _, r := range requests {
		if !slices.ContainsFunc(s.verified, func(v string) bool { return strings.HasPrefix(v, r) }) {
			t.Errorf("no request %s among %q", r, s.verified)
		}
	}
}

func verifySignature(r *http.Request) error {
	s, err := sigv4.Parse(r, time.Now(), sigv4.Scope{Region: "us-east-1", Service: "lambda"})
	if err != nil {
		return err
	}
	if s.AccessKeyID != signatureKey {
		return sigv4.ErrUnknownKey
	}
	if _, err := io.Copy(io.Discard, s.Body(r.Body)); err != nil {
		return err
	}
	if !s.Verify(sigv4.DeriveKey(signatureSecret, s.Date, s.Region, s.Service)) {
		return sigv4.ErrMismatch
	}
	return nil
}

// signatureEnvironment has the credentials for clients.
func signatureEnvironment() []string {
	return append(os.Environ(), "AWS_ACCESS_KEY_ID="+signatureKey, "AWS_SECRET_ACCESS_KEY="+signatureSecret,
		"AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
}

// signatureCase is a request that a generic signer signs.
type signatureCase struct {
	Name    string            `json:"name"`
	Method  string            `json:"method"`
	Target  string            `json:"target"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	Expires int               `json:"expires"` // in seconds, of a presigned URL
}

var signatureCases = []signatureCase{
	{Name: "root", Method: "GET", Target: "/"},
	{Name: "invoke", Method: "POST", Target: "/2015-03-31/functions/hello/invocations", Body: `{"a":1}`},
	{Name: "not ASCII", Method: "POST", Target: "/x/%C3%BC%20%E1%88%B4/y", Body: "ü\u1234"},
	{Name: "slash in a name", Method: "GET", Target: "/2017-03-31/tags/a%2Fb/c"},
	{Name: "ARN", Method: "GET", Target: "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Ahello?Qualifier=%24LATEST"},
	{Name: "slash at the end", Method: "GET", Target: "/2015-03-31/functions/?MaxItems=1"},
	{Name: "reserved in the path", Method: "GET", Target: "/a%21b%27c%28d%29e%2Af~g-h_i.j"},
	{Name: "order of parameters", Method: "GET", Target: "/?b=2&a=1&B=3&aa=0&a-=x"},
	{Name: "repeated parameters", Method: "DELETE", Target: "/tags?tagKeys=z&tagKeys=a%3Ab&tagKeys=a-b&tagKeys=a"},
	{Name: "empty values", Method: "GET", Target: "/?a=&b=&c=1"},
	{Name: "reserved in the query", Method: "GET", Target: "/?a=%2B%20%2F%3F%26%3D%25~%27%28%29%2A%21&%C3%BC=%E1%88%B4"},
	{Name: "spaces in a header", Method: "POST", Target: "/", Headers: map[string]string{"x-amz-client-context": "a   b  c", "my-header": "  x  "}, Body: "x"},
	{Name: "presigned", Method: "GET", Target: "/2015-03-31/functions?MaxItems=2", Expires: 60},
	{Name: "presigned for a week", Method: "DELETE", Target: "/a%2Fb?b=1&a=%20", Expires: 604800},
}

func TestClientSignatures(t *testing.T) {
	boto3, javascript := clientDir(t, "boto3"), clientDir(t, "javascript")
	for name, argv := range map[string][]string{
		"botocore":   {filepath.Join(boto3, "venv/bin/python3"), filepath.Join(boto3, "sign.py")},
		"javascript": {"node", filepath.Join(javascript, "sign.mjs")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSignatureServer(t)
			cases, err := json.Marshal(signatureCases)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), argv[0], append(argv[1:], s.URL, signatureKey, signatureSecret)...)
			cmd.Stdin, cmd.Stderr = bytes.NewReader(cases), os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var answers map[string]string
			if err := json.Unmarshal(out, &answers); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, c := range signatureCases {
				if answers[c.Name] != "{}" {
					t.Errorf("%s: %s", c.Name, answers[c.Name])
				}
			}
			s.want(t)
		})
	}
	t.Run("go", func(t *testing.T) {
		t.Parallel()
		s := startSignatureServer(t)
		client := lambda.New(lambda.Options{BaseEndpoint: &s.URL, Region: "us-east-1", RetryMaxAttempts: 1,
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: signatureKey, SecretAccessKey: signatureSecret}, nil
			})})
		ctx, arn := t.Context(), "arn:aws:lambda:us-east-1:000000000000:function:hello"
		_, err := client.CreateFunction(ctx, &lambda.CreateFunctionInput{FunctionName: &arn, Role: &arn, Code: &types.FunctionCode{ZipFile: make([]byte, 1<<20)}})
		if err == nil {
			_, err = client.Invoke(ctx, &lambda.InvokeInput{FunctionName: &arn, Qualifier: aws.String("$LATEST"), Payload: []byte("{}"), ClientContext: aws.String("e30=")})
		}
		if err == nil {
			_, err = client.ListFunctions(ctx, &lambda.ListFunctionsInput{MaxItems: aws.Int32(3), Marker: aws.String("a+/ b=")})
		}
		if err == nil {
			_, err = client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: &arn})
		}
		if err != nil {
			t.Error(err)
		}
		s.want(t, "POST /2015-03-31/functions", "POST /2015-03-31/functions/arn%3Aaws", "GET /2015-03-31/functions?", "DELETE /2015-03-31/functions/arn%3A")
	})
	t.Run("aws", func(t *testing.T) {
		t.Parallel()
		s := startSignatureServer(t)
		dir := t.TempDir()
		for _, argv := range [][]string{
			{"invoke", "--function-name", "arn:aws:lambda:us-east-1:000000000000:function:hello", "--qualifier", "$LATEST", "--payload", "{}", filepath.Join(dir, "out")},
			{"untag-resource", "--resource", "arn:aws:lambda:us-east-1:000000000000:function:hello", "--tag-keys", "a:b", "a-b", "ü +"},
			{"list-functions", "--max-items", "3"},
		} {
			cmd := exec.CommandContext(t.Context(), filepath.Join(boto3, "venv/bin/aws"), append([]string{"--endpoint-url", s.URL, "lambda"}, argv...)...)
			cmd.Env, cmd.Stderr = signatureEnvironment(), os.Stderr
			if err := cmd.Run(); err != nil {
				t.Errorf("%s: %v", argv[0], err)
			}
		}
		s.want(t, "POST /2015-03-31/functions/arn%3Aaws", "DELETE /2017-03-31/tags/arn%3A", "GET /2015-03-31/functions")
	})
	t.Run("curl", func(t *testing.T) {
		t.Parallel()
		s := startSignatureServer(t)
		for _, argv := range [][]string{
			{"-d", `{"a":1}`, "/2015-03-31/functions/hello/invocations"},
			{"/2015-03-31/functions?MaxItems=3"},
			{"-X", "DELETE", "/2015-03-31/functions/hello"},
			{"-d", "{}", "-H", "X-Amz-Invocation-Type: DryRun", "-H", "Content-Type: application/json", "/2015-03-31/functions/hello/invocations?Qualifier=1"},
		} {
			last := len(argv) - 1
			argv[last] = s.URL + argv[last]
			cmd := exec.CommandContext(t.Context(), "curl", append([]string{"--silent", "--show-error", "--fail", "--noproxy", "*", "--aws-sigv4", "aws:amz:us-east-1:lambda",
				"--user", signatureKey + ":" + signatureSecret}, argv...)...)
			cmd.Stderr = os.Stderr
			if err := cmd.Run(); err != nil {
				t.Errorf("%q: %v", argv, err)
			}
		}
		s.want(t, "POST /2015-03-31/functions/hello/invocations", "GET /2015-03-31/functions?MaxItems=3", "DELETE /2015-03-31/functions/hello", "POST /2015-03-31/functions/hello/invocations?Q")
	})
}

// The vectors that lambda/sigv4 refuses, and why. The others it must accept.
var vectorsRefused = map[string]string{
	"post-sts-header-after": "",               // the token is added after signing, so that nothing vouches for it
	"double-encode-path":    "does not match", // its request and its canonical request have different dates

	// What the router sees must be what was signed.
	"get-relative-normalized":              "empty segment",
	"get-relative-relative-normalized":     "empty segment",
	"get-slash-dot-slash-normalized":       "empty segment",
	"get-slash-normalized":                 "empty segment",
	"get-slash-pointless-dot-normalized":   "empty segment",
	"get-slashes-normalized":               "empty segment",
	"get-relative-unnormalized":            "empty segment",
	"get-relative-relative-unnormalized":   "empty segment",
	"get-slash-dot-slash-unnormalized":     "empty segment",
	"get-slash-unnormalized":               "empty segment",
	"get-slash-pointless-dot-unnormalized": "empty segment",
	"get-slashes-unnormalized":             "empty segment",
}

// AWS's published vectors, each signed in the header and in the query.
func TestClientSignatureVectors(t *testing.T) {
	signed, err := filepath.Glob(filepath.Join(clientDir(t, "vectors"), "v4", "*", "*-signed-request.txt"))
	if err != nil || len(signed) < 70 {
		t.Fatalf("%d vectors, %v", len(signed), err)
	}
	for _, file := range signed {
		dir, form := filepath.Split(file)
		name, form := filepath.Base(dir), strings.TrimSuffix(form, "-signed-request.txt")
		t.Run(name+"/"+form, func(t *testing.T) {
			r := vectorRequest(t, string(harness.ReadFile(t, file)))
			// The vectors with a context are of 2015, for the service "service".
			at, scope := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC), sigv4.Scope{Region: "us-east-1", Service: "service"}
			if name == "double-url-encode" {
				at, scope = time.Date(2021, 5, 11, 15, 40, 45, 0, time.UTC), sigv4.Scope{Region: "us-east-2", Service: "lambda"}
			}
			s, err := sigv4.Parse(r, at, scope)
			if err == nil {
				_, err = io.Copy(io.Discard, s.Body(r.Body))
			}
			if err == nil && !s.Verify(sigv4.DeriveKey("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", s.Date, s.Region, s.Service)) {
				err = sigv4.ErrMismatch
			}
			why, refused := vectorsRefused[name]
			if refused != (err != nil) || err != nil && !strings.Contains(err.Error(), why) {
				t.Errorf("%v, want an error: %v %q", err, refused, why)
			}
			if want, err := os.ReadFile(filepath.Join(dir, form+"-string-to-sign.txt")); err == nil && !refused && s.StringToSign() != strings.TrimSpace(string(want)) {
				t.Errorf("string to sign %q, want %q", s.StringToSign(), want)
			}
		})
	}
}

// vectorRequest makes a request of a vector's text. Not all are well-formed HTTP.
func vectorRequest(t *testing.T, text string) *http.Request {
	t.Helper()
	head, body, _ := strings.Cut(text, "\n\n")
	line, head, _ := strings.Cut(head, "\n")
	method, target, _ := strings.Cut(line, " ")
	r := &http.Request{Method: method, RequestURI: strings.TrimSuffix(target, " HTTP/1.1"), Header: http.Header{},
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body))}
	for line := range strings.SplitSeq(strings.ReplaceAll(head, "\n ", " "), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			r.Header.Add(name, strings.TrimSpace(value))
		}
	}
	r.Host = r.Header.Get("Host")
	delete(r.Header, "Host")
	return r
}
