//go:build integration

package serve

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// serveFile is a running `sandboxd serve` with the text of an operator's file.
func serveFile(t *testing.T, f harness.Folders, text string, args ...string) (*keyed, *lambda.Client) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "serve.yaml")
	harness.WriteFile(t, config, []byte(text), 0o600)
	cmd := f.Host.Command(harness.Sandboxd, append(append([]string{"serve", "--listen=127.0.0.1:0", "--pool=0", "--config", config}, f.Flags()...), args...)...)
	d := &keyed{&harness.Daemon{Daemon: testdaemon.NewDaemon(cmd, f.Folders), T: t, Folders: f}}
	d.Run()
	d.Listening()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = f.Host.In(func() error { conn, err = new(net.Dialer).DialContext(ctx, network, addr); return err })
		return conn, err
	}}
	options := d.client(d.first()).Options()
	options.HTTPClient = &http.Client{Transport: transport}
	return d, lambda.New(options)
}

// answering is a function in shell that answers with a text, in which variables are replaced.
func answering(text string) string {
	return "#!/bin/sh\nwhile :; do\n" +
		`id=$(curl -sS -D - -o /tmp/e "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next" | tr -d '\r' | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //Ip')` + "\n" +
		`curl -sS -o /dev/null -d "\"` + text + `\"" "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/$id/response"` + "\ndone\n"
}

// make makes a function. change changes what it is made of.
func (d *keyed) make(c *lambda.Client, name string, code *types.FunctionCode, change func(*lambda.CreateFunctionInput)) error {
	in := &lambda.CreateFunctionInput{
		FunctionName: &name, Runtime: types.RuntimeProvidedal2023, Handler: aws.String("x"), Role: aws.String("arn:aws:iam::000000000000:role/none"),
		Timeout: aws.Int32(60), Code: code,
	}
	if change != nil {
		change(in)
	}
	_, err := c.CreateFunction(d.T.Context(), in)
	if err == nil {
		err = lambda.NewFunctionActiveV2Waiter(c).Wait(d.T.Context(), &lambda.GetFunctionInput{FunctionName: &name}, harness.Patience)
	}
	return err
}

func inFolder(path string) *types.FunctionCode {
	return &types.FunctionCode{S3Bucket: aws.String("hot-reload"), S3Key: &path}
}

// wantRefusal checks the words of a refusal.
func wantRefusal(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if code(err) != "InvalidParameterValueException" {
		t.Errorf("%s: %v, want a refusal", what, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v, want %q", what, err, w)
		}
	}
}

// Code comes from a folder that the operator has named, as it is at that time, and from nowhere
// else.
func TestCodeFromFolder(t *testing.T) {
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil { // the process that reads is not root
		t.Fatal(err)
	}
	bootstrap := filepath.Join(root, "app", "bootstrap")
	harness.WriteFile(t, bootstrap, []byte(answering("first")), 0o755)
	outside := t.TempDir()
	harness.WriteFile(t, filepath.Join(outside, "bootstrap"), []byte("secret"), 0o755)
	if err := os.Symlink(outside, filepath.Join(root, "out")); err != nil {
		t.Fatal(err)
	}
	d, c := serveFile(t, harness.NewFolders(t), "folders: {code: "+root+"}\n")
	if err := d.make(c, "hello", inFolder(filepath.Join(root, "app")), nil); err != nil {
		t.Fatal(err)
	}
	if got := invoke(t.Context(), c, "hello"); got != `"first"` {
		t.Errorf("%s", got)
	}
	harness.WriteFile(t, bootstrap, []byte(answering("second")), 0o755)
	if got := invoke(t.Context(), c, "hello"); got != `"first"` {
		t.Errorf("before the update: %s", got)
	}
	before, err := c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("hello")})
	if err != nil {
		t.Fatal(err)
	}
	after, err := c.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: aws.String("hello"), S3Bucket: aws.String("hot-reload"), S3Key: aws.String("code/app")})
	if err == nil {
		err = lambda.NewFunctionUpdatedV2Waiter(c).Wait(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("hello")}, harness.Patience)
	}
	if err != nil {
		t.Fatal(err)
	}
	if *before.CodeSha256 == *after.CodeSha256 {
		t.Errorf("both have the digest %s", *after.CodeSha256)
	}
	if got := invoke(t.Context(), c, "hello"); got != `"second"` {
		t.Errorf("after the update: %s", got)
	}

	hidden, pipe := filepath.Join(root, "hidden", "bootstrap"), filepath.Join(root, "pipe", "p")
	harness.WriteFile(t, hidden, []byte("x"), 0o600)
	harness.WriteFile(t, filepath.Join(root, "pipe", "bootstrap"), []byte("x"), 0o755)
	if err := syscall.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, words := range map[string][]string{
		"/etc": {"none of the folders code", "folders:"}, outside: {"none of the folders"}, filepath.Join(root, "out"): {"by a link"},
		"code/out/bootstrap": {"by a link"}, "code/none": {"has no"}, "code/pipe": {"pipe/p", "a named pipe"}, "code/hidden": {"hidden/bootstrap", "chmod"},
	} {
		wantRefusal(t, path, d.make(c, "bad", inFolder(path), nil), words...)
	}
	wantRefusal(t, "a bucket", d.make(c, "bad", &types.FunctionCode{S3Bucket: aws.String("bucket"), S3Key: aws.String("k")}, nil), "hot-reload")
	if got := invoke(t.Context(), c, "bad"); got != "ResourceNotFoundException" {
		t.Errorf("what was refused is there: %s", got)
	}
}

// ENV-02: a function has the credentials of its role if the operator has named it, and new ones
// when they change.
func TestRoles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	profile := func(id, secret string) {
		harness.WriteFile(t, file, []byte("[reader]\naws_access_key_id = "+id+"\naws_secret_access_key = "+secret+"\naws_session_token = token-"+id+"\n"), 0o600)
	}
	profile("ID1", "hushhush1")
	d, c := serveFile(t, harness.NewFolders(t), "roles:\n  reader: {credentials: "+file+", profile: reader}\n"+
		"  arn:aws:iam::999999999999:role/path/fixed: {access-key-id: FIXED, secret-access-key: hushhush3}\n")
	answer := &types.FunctionCode{ZipFile: zipOf(t, map[string]string{"bootstrap": answering("$AWS_ACCESS_KEY_ID $AWS_SESSION_TOKEN $(printf %s \"$AWS_SECRET_ACCESS_KEY\" | wc -c)")})}
	for name, role := range map[string]string{
		"reads": "arn:aws:iam::123456789012:role/reader", "fixed": "arn:aws:iam::999999999999:role/path/fixed",
		"other": "arn:aws:iam::000000000000:role/reader",
	} {
		if err := d.make(c, name, answer, func(in *lambda.CreateFunctionInput) { in.Role = &role }); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"reads": `"ID1 token-ID1 9"`, "fixed": `"FIXED  9"`, "other": `"  0"`} {
		if got := invoke(t.Context(), c, name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	harness.WriteFile(t, file, []byte("[reader]\naws_access_key_id = ID2\n"), 0o600) // half of it
	d.WaitFor("the credentials of a role could not be read again")
	if got := invoke(t.Context(), c, "reads"); got != `"ID1 token-ID1 9"` {
		t.Errorf("with half a credential: %s", got)
	}
	profile("ID2", "hushhush2")
	d.WaitFor("the credentials of the role have changed")
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	got := ""
	for ctx.Err() == nil && got != `"ID2 token-ID2 9"` { // the line comes before the switch
		got = invoke(ctx, c, "reads")
	}
	if got != `"ID2 token-ID2 9"` {
		t.Errorf("with new credentials: %s", got)
	}
	role := "arn:aws:iam::123456789012:role/none"
	_, err := c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("reads"), Role: &role})
	if err == nil {
		err = lambda.NewFunctionUpdatedV2Waiter(c).Wait(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("reads")}, harness.Patience)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := invoke(t.Context(), c, "reads"); got != `"  0"` {
		t.Errorf("with another role: %s", got)
	}
	d.Stop()
	if strings.Contains(d.Log.Text(), "hushhush") {
		t.Errorf("the log has a secret:\n%s", d.Log.Text())
	}
}

// A function has the network that it names, if the operator has it, and none otherwise. Several
// runtimes may have one base.
func TestNetworksAndRuntimes(t *testing.T) {
	f := harness.NewFolders(t)
	f.Host = harness.NewInternet(t)
	d, c := serveFile(t, f, "networks:\n  web: {allow: ['"+harness.Public4+":7000']}\n"+
		"runtimes:\n  provided.al2023:\n  provided.al2:\n    rootfs: host\n", "--unsigned-loopback")
	code := &types.FunctionCode{ZipFile: zipOfFolder(t, harness.Function(t))}
	subnet := func(id string) func(*lambda.CreateFunctionInput) {
		return func(in *lambda.CreateFunctionInput) { in.VpcConfig = &types.VpcConfig{SubnetIds: []string{id}} }
	}
	wantRefusal(t, "an unknown network", d.make(c, "bad", code, subnet("subnet-lan")), "subnet-lan", "subnet-web", "configuration file")
	wantRefusal(t, "an unknown runtime", d.make(c, "bad", code, func(in *lambda.CreateFunctionInput) { in.Runtime = types.RuntimeNodejs22x }),
		"nodejs22.x", "provided.al2023, provided.al2", "configuration file")
	dial := func() (reached []bool) {
		var steps []script.Step
		for _, addr := range []string{harness.Public4, harness.Named4, harness.HostUplink4, "127.0.0.1"} {
			steps = append(steps, script.Step{Op: "dial", Method: "tcp", Path: net.JoinHostPort(addr, harness.ServePort), MS: 1500})
		}
		for _, r := range d.Do(steps...).Results {
			reached = append(reached, r.Text == "pong")
		}
		return reached
	}
	for _, tt := range []struct {
		runtime types.Runtime
		subnet  string
		reaches bool
	}{{types.RuntimeProvidedal2023, "subnet-web", true}, {types.RuntimeProvidedal2, "", false}} {
		err := d.make(c, "function", code, func(in *lambda.CreateFunctionInput) {
			in.Runtime = tt.runtime
			if tt.subnet != "" {
				subnet(tt.subnet)(in)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := dial(); got[0] != tt.reaches || got[1] || got[2] || got[3] {
			t.Errorf("%+v: reached %v", tt, got)
		}
		if _, err := c.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("function")}); err != nil {
			t.Fatal(err)
		}
	}
	d.Stop()
	f.Host.WantNothingOnNetwork(d.Instance)
}

// zipOfFolder is a zip of the files in a folder.
func zipOfFolder(t *testing.T, dir string) []byte {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		files[name] = string(harness.ReadFile(t, path))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return zipOf(t, files)
}

// What is wrong in the operator's file ends the start, with the name and the cure.
func TestOperatorFileRefused(t *testing.T) {
	f := harness.NewFolders(t)
	for text, words := range map[string][]string{
		"folders: {code: relative}":                        {"folder code", "absolute"},
		"folders: {code: /nonexistent-folder}":             {"folder code", "/nonexistent-folder", "make it"},
		"folders: {code: " + f.State + "}":                 {"folder code", "another folder"},
		"folders: {'a b': /srv}":                           {"a b", "hyphens"},
		"roles: {reader: {}}":                              {"role reader", "credentials"},
		"roles: {reader: {access-key-id: A}}":              {"role reader", "secret-access-key"},
		"roles: {reader: {credentials: /nowhere}}":         {"role reader", "/nowhere"},
		"roles: {'arn:aws:s3:::x': {credentials: x}}":      {"arn:aws:s3:::x", "ARN"},
		"roles: {reader: {secret-access-key: [hushhush]}}": {"single value"},
	} {
		config := filepath.Join(t.TempDir(), "serve.yaml")
		harness.WriteFile(t, config, []byte(text), 0o600)
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
		out, err := exec.CommandContext(ctx, harness.Sandboxd, append([]string{"serve", "--listen=127.0.0.1:0", "--config", config}, f.Flags()...)...).CombinedOutput()
		cancel()
		if err == nil || strings.Contains(string(out), "hushhush") {
			t.Errorf("%s: %v: %s", text, err, out)
		}
		for _, w := range words {
			if !strings.Contains(string(out), w) {
				t.Errorf("%s: %s, want %q", text, out, w)
			}
		}
	}
}
