//go:build integration

package serve

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/message"
)

// Secrets of access keys, variables of functions and the host key are in no log, command line,
// environment of a process of the daemon's, answer of a command, or file but root's own, whatever
// goes wrong.
func TestSecretsStayInside(t *testing.T) {
	f := harness.NewFolders(t)
	d := serveKeyed(t, f, "--log-level=debug")
	first := d.first()
	admin := d.client(first)
	const variable = "value-that-nobody-may-see"
	d.create(admin, "f", variable)
	key := findKey(t, d.key("create", "--invoke", "f"))
	if got := invoke(t.Context(), d.client(key), "f"); got != `"`+variable+`"` {
		t.Fatal(got)
	}
	hostKey := regexp.MustCompile(`[0-9a-f]{64}`).FindString(string(harness.ReadFile(t, filepath.Join(f.State, "host.key"))))
	secrets := map[string]string{"the first key": first.secret, "an invoke key": key.secret, "a variable": variable, "the host key": hostKey}
	clean := func(what, text string) {
		t.Helper()
		for name, secret := range secrets {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s is in %s: %.200q", name, what, text[max(i-100, 0):])
			}
		}
	}

	// Requests that fail with secrets in them, at places where somebody may have put them by mistake.
	for _, auth := range []string{
		first.secret, "Basic " + first.secret, "Bearer " + key.secret,
		"AWS4-HMAC-SHA256 Credential=" + first.id + "/20260101/us-east-1/lambda/aws4_request, SignedHeaders=host, Signature=" + first.secret,
		"AWS4-HMAC-SHA256 Credential=" + first.secret + "/20260101/us-east-1/lambda/aws4_request, SignedHeaders=host, Signature=00",
	} {
		for method, path := range map[string]string{"GET": "/2015-03-31/functions/", "POST": "/2015-03-31/functions/f/invocations"} {
			r, err := http.NewRequestWithContext(t.Context(), method, "http://"+d.Addr+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", auth)
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode/100 != 4 {
				t.Errorf("%s with %.30q: %s, %v", path, auth, res.Status, err)
			}
			clean("the answer", strings.ReplaceAll(string(text), "Credential="+first.secret, "")+fmt.Sprint(res.Header))
		}
	}
	update := func(want string, vars map[string]string) {
		t.Helper()
		_, err := admin.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f"), Environment: &types.Environment{Variables: vars}})
		if got := code(err); got != want {
			t.Errorf("%s, want %s: %v", got, want, err)
		}
	}
	update("InvalidParameterValueException", map[string]string{"AWS_ACCESS_KEY_ID": variable})
	update("InvalidParameterValueException", map[string]string{"LONG": strings.Repeat(variable, 1+4096/len(variable))})
	update("ValidationException", map[string]string{"1": variable})

	// Each process dies, and the host key changes.
	for _, name := range []string{"sandboxd-control", "sandboxd-worker"} {
		for _, pid := range d.processes(name) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		harness.Eventually(t, harness.Patience, func() string {
			if text, err := d.operator("/ready"); err != nil || text != "ready\n" {
				return fmt.Sprint(text, err)
			}
			return ""
		})
	}
	d.key("rotate-host")
	secrets["the next host key"] = regexp.MustCompile(`[0-9a-f]{64}`).FindString(string(harness.ReadFile(t, filepath.Join(f.State, "host.key"))))
	if got := invoke(t.Context(), d.client(key), "f"); got != `"`+variable+`"` {
		t.Fatal(got)
	}

	own := append([]int{d.Cmd.Process.Pid}, append(d.processes("sandboxd-control"), d.processes("sandboxd-worker")...)...)
	if len(own) != 3 {
		t.Errorf("processes %v", own)
	}
	for _, p := range d.Inits() { // not what the function runs: that is its own business
		own = append(own, p.PID)
	}
	for _, pid := range own {
		clean(fmt.Sprintf("the environment of %s", harness.Command(pid)), string(harness.ReadFile(t, fmt.Sprintf("/proc/%d/environ", pid))))
		clean(fmt.Sprintf("the command line of process %d", pid), string(harness.ReadFile(t, fmt.Sprintf("/proc/%d/cmdline", pid))))
	}
	sandboxes := d.PS()
	if len(sandboxes) == 0 {
		t.Error("ps lists no sandbox")
	}
	for _, path := range []string{"/metrics", "/v1/keys", "/v1/host-keys"} {
		text, err := d.operator(path)
		if err != nil {
			t.Error(err)
		}
		clean(path, text)
	}
	for _, args := range [][]string{{"key", "list"}, {"key", "list", "--output=json"}, {"ps"}, {"ps", "--output=json"}} {
		out, err := exec.Command(harness.Sandboxd, append(args, "--run-dir", f.Run)...).CombinedOutput()
		if err != nil {
			t.Errorf("%q: %v: %s", args, err, out)
		}
		clean(strings.Join(args, " "), string(out))
	}
	for _, s := range sandboxes {
		out, err := exec.Command(harness.Sandboxd, "inspect", s.ID, "--run-dir", f.Run).CombinedOutput()
		if err != nil {
			t.Errorf("inspect: %v: %s", err, out)
		}
		clean("inspect", string(out))
	}
	d.key("revoke", key.id)
	d.Stop()
	clean("the log", d.Log.Text())
	if !strings.Contains(d.Log.Text(), "level=debug") {
		t.Error("the log is not that of --log-level=debug")
	}
	for name, secret := range secrets {
		var out bytes.Buffer
		cmd := exec.Command("grep", "-r", "-l", "-F", "-e", secret, f.State, f.Run)
		cmd.Stdout = &out
		_ = cmd.Run() // fails if there is none
		want := map[string]string{"the first key": filepath.Join(f.State, "first-key") + "\n", "the next host key": filepath.Join(f.State, "host.key") + "\n"}[name]
		if got := out.String(); got != want {
			t.Errorf("%s is in %q; want %q", name, got, want)
		}
	}
}

// With --unsigned-loopback a request without a signature may do everything, unless it is for a
// name that a web page could own. A wrong signature is refused all the same.
func TestUnsignedLoopback(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t), "--unsigned-loopback")
	c := lambda.New(lambda.Options{Region: "us-east-1", BaseEndpoint: aws.String("http://" + d.Addr), RetryMaxAttempts: 5, Credentials: aws.AnonymousCredentials{}})
	d.create(c, "f", "x")
	if got := invoke(t.Context(), c, "f"); got != `"x"` {
		t.Errorf("invoked without a signature: %s", got)
	}
	if got := d.list(c); got != "" {
		t.Errorf("listed without a signature: %s", got)
	}
	wrong := d.client(accessKey{d.first().id, strings.Repeat("A", 40)})
	if got := d.list(wrong); got != "InvalidSignatureException" {
		t.Errorf("listed with a wrong signature: %s", got)
	}
	if got := invoke(t.Context(), wrong, "f"); got != "InvalidSignatureException" {
		t.Errorf("invoked with a wrong signature: %s", got)
	}
	for method, path := range map[string]string{"GET": "/2015-03-31/functions/", "POST": "/2015-03-31/functions/f/invocations"} {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+d.Addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "page.example"
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden {
			t.Errorf("%s for a name of a web page: %s", path, res.Status)
		}
	}
	d.WaitFor(`action="lambda:ListFunctions"`)
}

// A worker that was taken over cannot pass off requests of its own as those that need no
// signature, unless the operator wants none.
func TestUnsignedMark(t *testing.T) {
	for flag, want := range map[string]int{"--unsigned=false": http.StatusForbidden, "--unsigned": http.StatusOK} {
		d := launch(t, harness.NewFolders(t), "--region=us-east-1", flag)
		d.Listening()
		d.WaitFor("the control process is ready")
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+d.Addr+"/2015-03-31/functions/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(message.UnsignedHeader, "1") // the worker that was taken over passes it on
		res, err := d.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != want {
			t.Errorf("%s: %s %s, %v; want %d", flag, res.Status, text, err, want)
		}
	}
}
