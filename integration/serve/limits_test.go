//go:build integration

package serve

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// wantMetrics waits until there are these series. An invocation is answered before its sandbox is
// idle.
func (d *keyed) wantMetrics(want ...string) {
	d.T.Helper()
	harness.Eventually(d.T, harness.Patience, func() string {
		text, err := d.operator("/metrics")
		if err != nil { // the functions are being opened
			return err.Error()
		}
		for _, w := range want {
			if !strings.Contains(text, "\n"+w+"\n") {
				return "no " + w + " in " + text
			}
		}
		return ""
	})
}

// impatient is client without retries.
func (d *keyed) impatient(k accessKey) *lambda.Client {
	return lambda.New(d.client(k).Options(), func(o *lambda.Options) { o.Retryer, o.RetryMaxAttempts = aws.NopRetryer{}, 1 })
}

// input is a function with that program.
func input(t *testing.T, name, bootstrap string) *lambda.CreateFunctionInput {
	return &lambda.CreateFunctionInput{
		FunctionName: &name, Runtime: types.RuntimeProvidedal2023, Handler: aws.String("x"), Role: aws.String("arn:aws:iam::000000000000:role/none"),
		Code: &types.FunctionCode{ZipFile: zipOf(t, map[string]string{"bootstrap": bootstrap})},
	}
}

// throttled reports the reason of a TooManyRequestsException, and whether it says when to retry.
func throttled(err error) (reason types.ThrottleReason, retryAfter string) {
	var many *types.TooManyRequestsException
	if errors.As(err, &many) {
		reason = many.Reason
	}
	var res *awshttp.ResponseError
	if errors.As(err, &res) {
		retryAfter = res.Response.Header.Get("Retry-After")
	}
	return reason, retryAfter
}

// Functions and their code have limits. Both are in the metrics, and room comes back with a
// deletion.
func TestLimitsOfFunctionsAndCode(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t), harness.Config(t, "functions: 2\ncode-size: 1\n"))
	c := d.impatient(d.first())
	create := func(in *lambda.CreateFunctionInput) error {
		_, err := c.CreateFunction(t.Context(), in)
		return err
	}
	remove := func(name string) {
		t.Helper()
		if err := lambda.NewFunctionActiveV2Waiter(c).Wait(t.Context(), &lambda.GetFunctionInput{FunctionName: &name}, harness.Patience); err != nil {
			t.Fatal(err)
		}
		if _, err := c.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: &name}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b"} {
		if err := create(input(t, name, "#!/bin/sh\n")); err != nil {
			t.Fatal(err)
		}
	}
	if err := create(input(t, "c", "#!/bin/sh\n")); code(err) != "InvalidParameterValueException" || !strings.Contains(err.Error(), "2 functions") {
		t.Errorf("a third function: %v", err)
	}
	d.wantMetrics("sandboxd_functions 2", "sandboxd_functions_limit 2", "sandboxd_code_limit_bytes 1.048576e+06")
	remove("b")
	if err := create(input(t, "big", "#!/bin/sh\n"+noise(2<<20))); code(err) != "CodeStorageExceededException" {
		t.Errorf("2 MB of code: %v", err)
	}
	if err := create(input(t, "c", "#!/bin/sh\n")); err != nil {
		t.Errorf("after a deletion: %v", err)
	}
	d.wantMetrics("sandboxd_functions 2", `sandboxd_api_requests_total{action="lambda:CreateFunction",result="CodeStorageExceededException"} 1`)
}

// noise returns n bytes that do not compress well.
func noise(n int) string {
	b, state := make([]byte, n), uint32(1)
	for i := range b {
		state = state*1664525 + 1013904223
		b[i] = byte(state >> 24)
	}
	return string(b)
}

// An access key has a rate of its own.
func TestLimitOfRate(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t), harness.Config(t, "api-rate: 1\napi-burst: 3\n"))
	c := d.impatient(d.first())
	other := d.impatient(findKey(t, d.key("create")))
	var err error
	for n := 0; err == nil && n < 1000; n++ {
		_, err = c.ListFunctions(t.Context(), &lambda.ListFunctionsInput{})
	}
	if reason, after := throttled(err); reason != types.ThrottleReasonCallerRateLimitExceeded || after != "1" {
		t.Errorf("reason %q, Retry-After %q: %v", reason, after, err)
	}
	if got := d.list(other); got != "" {
		t.Errorf("another key: %s", got)
	}
	d.wantMetrics(`sandboxd_api_requests_total{action="lambda:ListFunctions",result="TooManyRequestsException"} 1`)
}

// With less free disk than the operator wants, nothing is changed. Functions can be read, invoked and
// deleted. When there is room again, all goes on.
func TestLimitOfDisk(t *testing.T) {
	f := harness.NewFolders(t)
	if err := os.MkdirAll(f.State, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", f.State, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=256m,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(f.State, 0); err != nil {
			t.Error(err)
		}
	})
	d := serveKeyed(t, f, harness.Config(t, "free-space: 128\n"))
	c := d.impatient(d.first())
	d.create(d.client(d.first()), "f", "x")
	if got := invoke(t.Context(), c, "f"); got != `"x"` {
		t.Fatal(got)
	}
	update := func() error {
		_, err := c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f"), Timeout: aws.Int32(7)})
		return err
	}
	filler := filepath.Join(f.State, "filler")
	harness.WriteFile(t, filler, make([]byte, 160<<20), 0o600)
	_, created := c.CreateFunction(t.Context(), input(t, "g", "#!/bin/sh\n"))
	for what, err := range map[string]error{"an update": update(), "a new function": created} {
		var res *awshttp.ResponseError
		if code(err) != "ServiceException" || !strings.Contains(err.Error(), "free-space") || !errors.As(err, &res) || res.HTTPStatusCode() != http.StatusServiceUnavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := invoke(t.Context(), c, "f"); got != `"x"` {
		t.Errorf("invoke: %s", got)
	}
	if got := d.list(c); got != "" {
		t.Errorf("list: %s", got)
	}
	d.wantMetrics("sandboxd_disk_floor_bytes 1.34217728e+08")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := update(); err != nil {
		t.Errorf("with room again: %v", err)
	}
	harness.WriteFile(t, filler, make([]byte, 160<<20), 0o600)
	if err := lambda.NewFunctionUpdatedV2Waiter(c).Wait(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f")}, harness.Patience); err != nil {
		t.Error(err)
	}
	if got := invoke(t.Context(), c, "f"); got != `"x"` { // in a new sandbox
		t.Errorf("invoke after the update: %s", got)
	}
	if _, err := c.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("f")}); err != nil {
		t.Errorf("delete: %v", err)
	}
	d.Stop()
}

// The functions of the host share its sandboxes: the longest idle ones make room, whosever they are,
// and when all are busy others get 429 with the reason of AWS.
func TestAdmission(t *testing.T) {
	for name, flags := range map[string][]string{
		"by number": {"--concurrency=2"},
		"by memory": {harness.Config(t, "sandbox-memory: 256\n")},
	} {
		t.Run(name, func(t *testing.T) {
			d := serveKeyed(t, harness.NewFolders(t), flags...)
			admin := d.client(d.first())
			for _, f := range []string{"a", "b", "c"} {
				d.create(admin, f, f)
			}
			for _, f := range []string{"a", "b", "c", "a", "c"} { // each time another one goes
				if got := invoke(t.Context(), admin, f); got != fmt.Sprintf("%q", f) {
					t.Errorf("%s: %s", f, got)
				}
			}
			d.wantMetrics(`sandboxd_sandboxes{state="busy"} 0`, `sandboxd_sandboxes{state="idle"} 2`, "sandboxd_throttles_total 0")

			slow := input(t, "slow", "#!/bin/sh\nwhile :; do curl -sS -o /dev/null http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next; sleep 600; done\n")
			slow.Timeout = aws.Int32(10)
			if _, err := admin.CreateFunction(t.Context(), slow); err != nil {
				t.Fatal(err)
			}
			if err := lambda.NewFunctionActiveV2Waiter(admin).Wait(t.Context(), &lambda.GetFunctionInput{FunctionName: slow.FunctionName}, harness.Patience); err != nil {
				t.Fatal(err)
			}
			ended := make(chan string, 2)
			for range 2 {
				go func() { ended <- invoke(t.Context(), admin, "slow") }()
			}
			d.wantMetrics(`sandboxd_sandboxes{state="busy"} 2`)
			_, err := d.impatient(d.first()).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("a")})
			if reason, _ := throttled(err); reason != types.ThrottleReasonConcurrentInvocationLimitExceeded {
				t.Errorf("beside two busy ones: reason %q, %v", reason, err)
			}
			d.wantMetrics("sandboxd_throttles_total 1", `sandboxd_function_throttles_total{function="a"} 1`)
			for range 2 {
				if got := <-ended; !strings.Contains(got, "timed out") {
					t.Errorf("slow: %s", got)
				}
			}
			if got := invoke(t.Context(), admin, "a"); got != `"a"` {
				t.Errorf("afterwards: %s", got)
			}
			if name != "by memory" {
				return
			}
			large := input(t, "large", "#!/bin/sh\n")
			large.MemorySize = aws.Int32(512)
			if _, err := admin.CreateFunction(t.Context(), large); err != nil {
				t.Fatal(err)
			}
			if err := lambda.NewFunctionActiveV2Waiter(admin).Wait(t.Context(), &lambda.GetFunctionInput{FunctionName: large.FunctionName}, harness.Patience); err != nil {
				t.Fatal(err)
			}
			_, err = admin.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("large")})
			if code(err) != "InvalidParameterValueException" || !strings.Contains(err.Error(), "exceeds the memory for all functions, 256 MB") {
				t.Errorf("more memory than all have: %v", err)
			}
		})
	}
}

// Functions that nobody invokes have no sandbox in the end, and are forgotten by the worker; the
// next invocation makes one.
func TestScaleToZero(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t), harness.Config(t, "idle-timeout: 1s\n"))
	c := d.client(d.first())
	d.create(c, "f", "x")
	for range 2 {
		if got := invoke(t.Context(), c, "f"); got != `"x"` {
			t.Fatal(got)
		}
		d.wantMetrics(`sandboxd_sandboxes{state="idle"} 0`, `sandboxd_sandboxes{state="busy"} 0`, "sandboxd_functions_known 0", "sandboxd_sandbox_memory_bytes 0")
		if inits := d.Inits(); len(inits) > 0 {
			t.Errorf("%d sandboxes are there", len(inits))
		}
	}
}

// holding is an HTTP client that sends half of each body, and the rest when it is released.
type holding struct{ release chan struct{} }

func (h holding) Do(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		r.Body = &heldBody{r.Body, r.ContentLength / 2, h.release}
	}
	return http.DefaultClient.Do(r)
}

type heldBody struct {
	io.ReadCloser
	left    int64 // before the wait
	release chan struct{}
}

func (b *heldBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		<-b.release
	} else {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

// Uploads of code have places. A few more wait, and the rest is refused; what is no upload goes on.
func TestLimitOfUploads(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t), harness.Config(t, "uploads: 1\n"))
	first := d.first()
	c := d.impatient(first)
	held := holding{make(chan struct{})}
	slow := lambda.New(c.Options(), func(o *lambda.Options) { o.HTTPClient = held })
	const waiting = 16
	results := make(chan error, waiting+1)
	for n := range waiting + 1 {
		go func() {
			_, err := slow.CreateFunction(t.Context(), input(t, fmt.Sprintf("f%d", n), "#!/bin/sh\n"+noise(64<<10)))
			results <- err
		}()
	}
	d.wantMetrics(`sandboxd_uploads{state="running"} 1`, fmt.Sprintf(`sandboxd_uploads{state="waiting"} %d`, waiting))
	_, err := c.CreateFunction(t.Context(), input(t, "late", "#!/bin/sh\n"))
	if reason, after := throttled(err); reason != types.ThrottleReasonCallerRateLimitExceeded || after != "1" {
		t.Errorf("one too many: reason %q, Retry-After %q: %v", reason, after, err)
	}
	if got := d.list(c); got != "" {
		t.Errorf("what is no upload: %s", got)
	}
	close(held.release)
	for range waiting + 1 {
		if err := <-results; err != nil {
			t.Errorf("an upload that had a place, or waited: %v", err)
		}
	}
	d.wantMetrics(`sandboxd_uploads{state="running"} 0`, `sandboxd_uploads{state="waiting"} 0`, fmt.Sprintf("sandboxd_functions %d", waiting+1))
}
