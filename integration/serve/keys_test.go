//go:build integration

package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// keyed is a running `sandboxd serve` whose callers sign.
type keyed struct{ *harness.Daemon }

func serveKeyed(t *testing.T, f harness.Folders, args ...string) *keyed {
	t.Helper()
	return &keyed{harness.Serve(t, f, args...)}
}

// launchServe starts `sandboxd serve`, which may fail.
func launchServe(t *testing.T, f harness.Folders, args ...string) *harness.Daemon {
	t.Helper()
	cmd := exec.Command(harness.Sandboxd, append(append([]string{"serve", "--pool=0"}, f.Flags()...), args...)...)
	d := &harness.Daemon{Daemon: testdaemon.NewDaemon(cmd, f.Folders), T: t, Folders: f}
	d.Run()
	return d
}

// accessKey is an access key with its secret.
type accessKey struct{ id, secret string }

var keyForm = regexp.MustCompile(`AWS_ACCESS_KEY_ID=(AKSD[A-Z2-7]{16}) AWS_SECRET_ACCESS_KEY=([A-Z2-7]{40})`)

func findKey(t *testing.T, text string) accessKey {
	t.Helper()
	m := keyForm.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no access key in %q", text)
	}
	return accessKey{m[1], m[2]}
}

// first is the first access key.
func (d *keyed) first() accessKey {
	d.T.Helper()
	return findKey(d.T, string(harness.ReadFile(d.T, filepath.Join(d.Folders.State, "first-key"))))
}

// command runs `sandboxd key` and returns what it prints, and its errors.
func (d *keyed) command(as *syscall.Credential, args ...string) (string, error) {
	cmd := exec.CommandContext(d.T.Context(), harness.Sandboxd, append(append([]string{"key"}, args...), "--run-dir", d.Folders.Run)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// key is command for what root does and must succeed.
func (d *keyed) key(args ...string) string {
	d.T.Helper()
	out, err := d.command(nil, args...)
	if err != nil {
		d.T.Fatalf("key %q: %v: %s", args, err, out)
	}
	return out
}

// client is the SDK with an access key. It repeats nothing but 503, which a control process that
// is being started causes.
func (d *keyed) client(k accessKey) *lambda.Client {
	return lambda.New(lambda.Options{
		Region: "us-east-1", BaseEndpoint: aws.String("http://" + d.Addr), RetryMaxAttempts: 5,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: k.id, SecretAccessKey: k.secret}, nil
		}),
	})
}

// code is the error's type of the API.
func code(err error) string {
	if e, ok := asAPIError(err); ok {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

func asAPIError(err error) (smithy.APIError, bool) {
	for err != nil {
		if e, ok := err.(smithy.APIError); ok {
			return e, true
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			break
		}
		err = u.Unwrap()
	}
	return nil, false
}

// create makes a function that answers with its variable NAME.
func (d *keyed) create(c *lambda.Client, name, variable string) {
	d.T.Helper()
	script := "#!/bin/sh\nwhile :; do\n" +
		`id=$(curl -sS -D - -o /tmp/e "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next" | tr -d '\r' | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //Ip')` + "\n" +
		`curl -sS -o /dev/null -d "\"$NAME\"" "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/$id/response"` + "\ndone\n"
	_, err := c.CreateFunction(d.T.Context(), &lambda.CreateFunctionInput{
		FunctionName: &name, Runtime: types.RuntimeProvidedal2023, Handler: aws.String("x"), Role: aws.String("arn:aws:iam::000000000000:role/none"),
		Timeout: aws.Int32(60), Code: &types.FunctionCode{ZipFile: zipOf(d.T, map[string]string{"bootstrap": script})},
		Environment: &types.Environment{Variables: map[string]string{"NAME": variable}},
	})
	if err == nil {
		err = lambda.NewFunctionActiveV2Waiter(c).Wait(d.T.Context(), &lambda.GetFunctionInput{FunctionName: &name}, harness.Patience)
	}
	if err != nil {
		d.T.Fatal(err)
	}
}

// invoke returns what a function answers, or the type of the error.
func invoke(ctx context.Context, c *lambda.Client, name string) string {
	out, err := c.Invoke(ctx, &lambda.InvokeInput{FunctionName: &name, Payload: []byte("{}")})
	if err != nil {
		return code(err)
	}
	return string(out.Payload)
}

func (d *keyed) list(c *lambda.Client) string {
	_, err := c.ListFunctions(d.T.Context(), &lambda.ListFunctionsInput{})
	if err != nil {
		return code(err)
	}
	return ""
}

// The first start makes a key of which only root gets to know. It works until it is revoked,
// and does not come back.
func TestFirstKey(t *testing.T) {
	f := harness.NewFolders(t)
	d := serveKeyed(t, f)
	first := d.first()
	for _, name := range []string{"first-key", "host.key"} {
		info, err := os.Stat(filepath.Join(f.State, name))
		if err != nil || info.Mode() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if text := string(harness.ReadFile(t, filepath.Join(f.State, "first-key"))); !strings.Contains(text, "AWS_ENDPOINT_URL_LAMBDA=http://"+d.Addr+" AWS_DEFAULT_REGION=us-east-1 ") {
		t.Errorf("%s has not the address %s", text, d.Addr)
	}
	d.WaitFor("made the first access key")
	if got := d.list(d.client(first)); got != "" {
		t.Errorf("with the first key: %s", got)
	}
	if got := d.list(d.client(accessKey{first.id, strings.Repeat("A", 40)})); got != "InvalidSignatureException" {
		t.Errorf("with a wrong secret: %s", got)
	}
	if got := d.list(d.client(accessKey{"AKSDAAAAAAAAAAAAAAAA", first.secret})); got != "UnrecognizedClientException" {
		t.Errorf("with no key: %s", got)
	}
	if res, err := http.Get("http://" + d.Addr + "/2015-03-31/functions/"); err != nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("without a signature: %v, %v", res, err)
	} else {
		res.Body.Close()
	}
	second := findKey(t, d.key("create"))
	if out := d.key("list"); !strings.Contains(out, first.id) || !strings.Contains(out, second.id) || strings.Contains(out, second.secret) {
		t.Errorf("%s", out)
	}
	d.key("revoke", first.id)
	if got := d.list(d.client(first)); got != "UnrecognizedClientException" {
		t.Errorf("after it was revoked: %s", got)
	}
	d.Stop()
	if log := d.Log.Text(); strings.Contains(log, first.secret) || strings.Contains(log, second.secret) || strings.Count(log, "action=revoke-key key="+first.id) != 1 || !strings.Contains(log, "uid=0") {
		t.Errorf("the log has a secret, or lacks a command:\n%s", log)
	}
	d = serveKeyed(t, f)
	if got := d.list(d.client(first)); got != "UnrecognizedClientException" {
		t.Errorf("after the next start: %s", got)
	}
	if got := d.list(d.client(second)); got != "" {
		t.Errorf("the other key after the next start: %s", got)
	}
	if strings.Contains(d.Log.Text(), "made the first access key") {
		t.Error("the second start has made another first key")
	}
}

// A terminal, and nothing else, is shown the first key with a command to try.
func TestFirstKeyOnTerminal(t *testing.T) {
	f := harness.NewFolders(t)
	master, terminal, err := testdaemon.Terminal()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer terminal.Close()
	cmd := exec.Command(harness.Sandboxd, append([]string{"serve", "--listen=127.0.0.1:0", "--pool=0"}, f.Flags()...)...)
	cmd.Stderr = terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	book := testdaemon.NewBook()
	go func() {
		_, _ = io.Copy(book, master)
		book.End()
	}()
	if _, ok := book.Wait(harness.Patience, func(line string) bool { return strings.Contains(line, "listening") }); !ok {
		t.Errorf("it does not listen:\n%s", book.Text())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	want := strings.TrimSpace(string(harness.ReadFile(t, filepath.Join(f.State, "first-key"))))
	if text := book.Text(); !strings.Contains(text, want) || !strings.Contains(text, "aws lambda list-functions") {
		t.Errorf("the terminal shows:\n%s", text)
	}
}

// SEC-15: a key that may only invoke does no more than that. The worker remembers what it
// allows, and forgets it before the command to revoke it returns.
func TestInvokeKey(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t))
	admin := d.client(d.first())
	d.create(admin, "mine", "one")
	d.create(admin, "other", "two")
	key := findKey(t, d.key("create", "--invoke", "min?"))
	c := d.client(key)
	for range 3 {
		if got := invoke(t.Context(), c, "mine"); got != `"one"` {
			t.Fatalf("its function: %s", got)
		}
	}
	if got := invoke(t.Context(), c, "other"); got != "AccessDeniedException" {
		t.Errorf("another function: %s", got)
	}
	if got := d.list(c); got != "AccessDeniedException" {
		t.Errorf("the API: %s", got)
	}
	if _, err := c.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("mine")}); code(err) != "AccessDeniedException" {
		t.Errorf("DeleteFunction: %v", err)
	}
	if got := invoke(t.Context(), admin, "other"); got != `"two"` {
		t.Errorf("an administrator: %s", got)
	}
	d.key("revoke", key.id)
	if got := invoke(t.Context(), c, "mine"); got != "UnrecognizedClientException" {
		t.Errorf("after it was revoked: %s", got)
	}
	if out, err := d.command(nil, "revoke", "AKSDNOBODY"); err == nil || !strings.Contains(out, "there is no access key") {
		t.Errorf("%s, %v", out, err)
	}
	metrics := d.metrics()
	for _, want := range []string{
		`sandboxd_function_invocations_total{function="mine"} 3`, `sandboxd_function_invocations_total{function="other"} 1`,
		`sandboxd_invocations_total 4`, `sandboxd_access_keys{kind="admin"} 1`, `sandboxd_access_keys{kind="invoke"} 0`,
		`sandboxd_api_requests_total{action="lambda:CreateFunction",result="ok"} 2`,
		`sandboxd_api_requests_total{action="lambda:DeleteFunction",result="AccessDeniedException"} 1`,
		`sandboxd_worker_up 1`, `sandboxd_process_starts_total{process="control"} 1`, `sandboxd_process_starts_total{process="worker"} 1`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
	d.WaitFor(`action="lambda:DeleteFunction" arn="arn:aws:lambda:us-east-1:123456789012:function:mine"`)
}

// metrics returns the metrics.
func (d *keyed) metrics() string {
	d.T.Helper()
	text, err := d.operator("/metrics")
	if err != nil {
		d.T.Fatal(err)
	}
	return text
}

// operator asks on the operators' socket.
func (d *keyed) operator(path string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(d.Folders.Run, d.Instance, "admin.sock"))
	}}
	res, err := (&http.Client{Transport: transport, Timeout: harness.Patience}).Get("http://sandboxd" + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return string(text), err
}

// processes returns the process ids of the daemon's children with that name.
func (d *keyed) processes(name string) (pids []int) {
	d.T.Helper()
	for _, pid := range harness.PIDs(d.T) {
		if p, ok := harness.ReadProcess(pid); ok && p.Status("PPid") == fmt.Sprint(d.Cmd.Process.Pid) && strings.HasPrefix(harness.Command(pid), name) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// The deaths of control and worker are in the metrics. The key that the worker has remembered
// goes on working without control.
func TestDeathsCounted(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t))
	d.create(d.client(d.first()), "f", "x")
	key := findKey(t, d.key("create", "--invoke", "*"))
	c := d.client(key)
	if got := invoke(t.Context(), c, "f"); got != `"x"` {
		t.Fatal(got)
	}
	for _, name := range []string{"sandboxd-control", "sandboxd-worker"} {
		pids := d.processes(name)
		if len(pids) != 1 {
			t.Fatalf("%s: processes %v", name, pids)
		}
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("sandboxd_process_starts_total{process=%q} 2\n", strings.TrimPrefix(name, "sandboxd-"))
		harness.Eventually(t, harness.Patience, func() string {
			if text, err := d.operator("/metrics"); err != nil || !strings.Contains(text, want) {
				return fmt.Sprintf("no %s in %s, %v", want, text, err)
			}
			return ""
		})
	}
	if got := invoke(t.Context(), c, "f"); got != `"x"` {
		t.Errorf("after both: %s", got)
	}
	if text, err := d.operator("/ready"); err != nil || text != "ready\n" {
		t.Errorf("%s, %v", text, err)
	}
}

// The host key is rotated while functions are invoked. Nothing is lost, also if the rotation is
// cut short, and afterwards the old key is not needed any more.
func TestRotateHostKey(t *testing.T) {
	f := harness.NewFolders(t)
	d := serveKeyed(t, f)
	first := d.first()
	d.create(d.client(first), "f", "secret-value")
	key := findKey(t, d.key("create", "--invoke", "*"))
	path := filepath.Join(f.State, "host.key")
	ids := func() []string {
		t.Helper()
		text, err := seal.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r, err := seal.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return r.IDs()
	}
	check := func(when string) {
		t.Helper()
		out, err := d.client(first).GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f")})
		if err != nil || out.Environment == nil || out.Environment.Variables["NAME"] != "secret-value" {
			t.Errorf("%s: %+v, %v", when, out, err)
		}
		if got := invoke(t.Context(), d.client(key), "f"); got != `"secret-value"` {
			t.Errorf("%s: %s", when, got)
		}
	}
	check("before")
	old := ids()

	ctx, stop := context.WithCancel(t.Context())
	invoked := make(chan int)
	go func() {
		n := 0
		for c := d.client(key); ctx.Err() == nil; n++ {
			if got := invoke(ctx, c, "f"); got != `"secret-value"` && ctx.Err() == nil {
				t.Errorf("during the rotation: %s", got)
			}
		}
		invoked <- n
	}()
	if out := d.key("rotate-host"); !strings.Contains(out, "has a new host key") {
		t.Errorf("%s", out)
	}
	stop()
	t.Logf("%d invocations during the rotation", <-invoked)
	if now := ids(); len(now) != 1 || now[0] == old[0] {
		t.Errorf("keys %v, before %v", now, old)
	}
	check("after the rotation")
	d.Stop()
	for _, secret := range []string{"secret-value", key.secret, first.secret} {
		if out, err := exec.Command("grep", "-r", "-l", "-F", secret, filepath.Join(f.State, "control")).CombinedOutput(); err == nil {
			t.Errorf("a secret is in %s", out)
		}
	}
	if err := seal.Rotate(path); err != nil { // and the command is killed here
		t.Fatal(err)
	}
	d = serveKeyed(t, f)
	check("after a rotation that was cut short")
	harness.Eventually(t, harness.Patience, func() string {
		text, err := d.operator("/v1/host-keys")
		var has struct{ IDs []string }
		if err == nil {
			err = json.Unmarshal([]byte(text), &has)
		}
		if err != nil || len(has.IDs) != 2 {
			return fmt.Sprintf("%s, %v", text, err)
		}
		return ""
	})
	d.key("rotate-host")
	if now := ids(); len(now) != 1 {
		t.Errorf("keys %v after the next rotation", now)
	}
	check("after the next rotation")
	d.Stop()
	d = serveKeyed(t, f)
	check("with the new key alone")
}

// A start without the host key is refused: it could read nothing, and a new key would hide why.
func TestHostKeyMissing(t *testing.T) {
	f := harness.NewFolders(t)
	d := serveKeyed(t, f)
	d.Stop()
	path := filepath.Join(f.State, "host.key")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	refused := func(want string, args ...string) {
		t.Helper()
		out, err := exec.Command(harness.Sandboxd, append(append([]string{"serve", "--listen=127.0.0.1:0"}, f.Flags()...), args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %s; want %s", err, out, want)
		}
	}
	refused("copy it there from the host or the backup")
	if err := os.Chmod(path+".away", 0o644); err != nil {
		t.Fatal(err)
	}
	refused("chmod it to 0600", "--host-key", path+".away")
	if err := os.Chmod(path+".away", 0o600); err != nil {
		t.Fatal(err)
	}
	d = serveKeyed(t, f, "--host-key", path+".away")
	if got := d.list(d.client(d.first())); got != "" {
		t.Errorf("with --host-key: %s", got)
	}
}

// Who may be an operator: root and the members of the group, and nobody else. Only root may
// rotate the host key.
func TestOperatorsGroup(t *testing.T) {
	f := harness.NewFolders(t)
	d := &keyed{launch(t, f, "--region=us-east-1", "--group=daemon").Daemon}
	d.Listening()
	const daemonGroup = 1
	member := &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{daemonGroup}}
	other := &syscall.Credential{Uid: 65534, Gid: 65534}
	if out, err := d.command(member, "list"); err != nil || !strings.Contains(out, d.first().id) {
		t.Errorf("a member: %v: %s", err, out)
	}
	if out, err := d.command(other, "list"); err == nil || !strings.Contains(out, "use sudo, or become a member of group") {
		t.Errorf("another user: %v: %s", err, out)
	}
	if out, err := d.command(other, "list", "--instance", d.Instance); err == nil || !strings.Contains(out, "use sudo, or become a member of group") {
		t.Errorf("another user who knows the id: %v: %s", err, out)
	}
	if out, err := d.command(member, "rotate-host"); err == nil || !strings.Contains(out, "needs root") {
		t.Errorf("a member rotates the host key: %v: %s", err, out)
	}
	for who, as := range map[string]*syscall.Credential{"a member": member, "another user": other} {
		for _, name := range []string{"host-key.sock", "supervisor.sock", "control.sock", "admin.sock"} {
			cmd := exec.Command("/usr/bin/perl", "-MSocket", "-e", `socket(S, PF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un($ARGV[0])) or die "$!\n"`, filepath.Join(f.Run, d.Instance, name))
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
			if out, err := cmd.CombinedOutput(); (err == nil) != (who == "a member" && name == "admin.sock") || err != nil && !bytes.Contains(out, []byte("Permission denied")) {
				t.Errorf("%s connects to %s: %v: %s", who, name, err, out)
			}
		}
		for _, name := range []string{"first-key", "host.key", "control"} {
			cmd := exec.Command("ls", filepath.Join(f.State, name))
			if name != "control" {
				cmd = exec.Command("cat", filepath.Join(f.State, name))
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("%s reads %s: %s", who, name, out)
			}
		}
	}
	out, err := d.command(member, "create")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d.WaitFor("action=create-key key=" + findKey(t, out).id)
	d.WaitFor("uid=65534")
}

// A worker that was taken over may ask control what it likes, and gets nothing that signs.
func TestVerifyIsNoOracle(t *testing.T) {
	d := launch(t, harness.NewFolders(t), "--region=us-east-1")
	d.Listening()
	d.WaitFor("the control process is ready")
	k := &keyed{d.Daemon}
	first := k.first()
	now := time.Now().UTC()
	day := now.Format("20060102")
	for _, text := range []string{
		"", "x", "AWS4-HMAC-SHA256\n" + now.Format("20060102T150405Z") + "\n" + day + "/us-east-1/lambda/aws4_request\n" + strings.Repeat("00", 32),
	} {
		ask, err := json.Marshal(map[string]string{
			"AccessKeyID": first.id, "Date": day, "Region": "us-east-1", "Service": "lambda", "StringToSign": text, "Signature": strings.Repeat("0", 64),
			"Action": "lambda:InvokeFunction", "ARN": "arn:aws:lambda:us-east-1:000000000000:function:f",
		})
		if err != nil {
			t.Fatal(err)
		}
		got := d.question("POST", "verify", string(ask))
		if !strings.HasPrefix(got, "200 ") || !strings.Contains(got, `"Known":false`) || !strings.Contains(got, `"Key":null`) || strings.Contains(got, first.secret) {
			t.Errorf("%q: %s", text, got)
		}
	}
}
