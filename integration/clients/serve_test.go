//go:build integration

package clients

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// Unmodified clients lead a function through its life on `sandboxd serve`: create, wait, invoke,
// update code and configuration, get, list, delete. They sign with the first access key, and
// get nothing but the variables that serve has written for them. All do the same, and report
// what they saw as a life.

// A life is what a client saw of a function. Clients that are programs print it as JSON.
type life struct {
	Created          string // the function's state in the answer to CreateFunction
	Invoked          string // an answer of the first code
	Tail             string // the log's end, which came with the last answer
	DryRun           int
	Event            string // the error's code
	Streamed         string
	NewCode          string // an answer after UpdateFunctionCode
	NewConfiguration string // an answer after UpdateFunctionConfiguration
	Description      string
	Revisions        int  // how many revision ids it has had at three moments
	Downloaded       bool // what Code.Location has is the second code
	Listed           []string
	Deleted          string // the error's code of GetFunction afterwards
}

// lifeCode returns the files of the function's first and second code. Both answer with the name
// of their code and the variable MARK, and stream where the event says so.
func lifeCode(t *testing.T) (first, second string) {
	t.Helper()
	code := func(name string) string {
		return harness.ZipFile(t, "bootstrap", 0o755, strings.NewReader(`#!/bin/bash
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
while :; do
	id=$(curl -sS -D - -o /tmp/event "$api/next" | tr -d '\r' | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //Ip')
	echo "code `+name+` runs"
	if grep -q stream /tmp/event; then
		{ printf 'first '; printf second; } | curl -sS -o /dev/null -X POST -T - -H 'Lambda-Runtime-Function-Response-Mode: streaming' "$api/$id/response"
	else
		curl -sS -o /dev/null -d "\"`+name+` $MARK\"" "$api/$id/response"
	fi
done
`))
	}
	return code("one"), code("two")
}

// lifeEnvironment has the variables that serve has written, for the program of a client.
func lifeEnvironment(d *harness.Daemon) []string {
	environment := append(os.Environ(), "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
	variables := d.FirstKey()
	variables["AWS_REGION"] = variables["AWS_DEFAULT_REGION"] // the SDK for JavaScript knows no other
	for name, value := range variables {
		environment = append(environment, name+"="+value)
	}
	return environment
}

// wantLife starts serve and wants that a client sees what it should. Streams is false for
// clients that have no InvokeWithResponseStream.
func wantLife(t *testing.T, streams bool, live func(d *harness.Daemon, first, second string) (life, error)) {
	t.Helper()
	t.Parallel()
	d := harness.Serve(t, harness.NewFolders(t))
	first, second := lifeCode(t)
	got, err := live(d, first, second)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got.Tail, "code two runs\n") || !strings.Contains(got.Tail, "REPORT RequestId: ") {
		t.Errorf("tail %q", got.Tail)
	}
	got.Tail = ""
	want := life{
		Created: "Pending", Invoked: `"one a"`, DryRun: http.StatusNoContent, Event: "InvalidParameterValueException", Streamed: "first second",
		NewCode: `"two a"`, NewConfiguration: `"two b"`, Description: "changed", Revisions: 3, Downloaded: true, Listed: []string{"life"},
		Deleted: "ResourceNotFoundException",
	}
	if !streams {
		want.Streamed = ""
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the client saw\n%+v, want\n%+v", got, want)
	}
}

// liveProgram has a program lead the life. It gets the files of both codes as arguments.
func liveProgram(t *testing.T, argv ...string) func(d *harness.Daemon, first, second string) (life, error) {
	return func(d *harness.Daemon, first, second string) (got life, err error) {
		cmd := exec.CommandContext(t.Context(), argv[0], append(argv[1:], first, second)...)
		cmd.Env, cmd.Stderr = lifeEnvironment(d), os.Stderr
		out, err := cmd.Output()
		if err == nil {
			err = json.Unmarshal(out, &got)
		}
		return got, err
	}
}

func TestClientServeBoto3(t *testing.T) {
	venv := clientDir(t, "boto3")
	wantLife(t, true, liveProgram(t, filepath.Join(venv, "venv/bin/python3"), filepath.Join(venv, "life.py")))
}

func TestClientServeJavaScript(t *testing.T) {
	wantLife(t, true, liveProgram(t, "node", filepath.Join(clientDir(t, "javascript"), "life.mjs")))
}

func TestClientServeGo(t *testing.T) {
	wantLife(t, true, func(d *harness.Daemon, first, second string) (life, error) { return liveGo(t, d, first, second) })
}

// liveGo leads the life with the SDK for Go.
func liveGo(t *testing.T, d *harness.Daemon, firstFile, secondFile string) (got life, err error) {
	ctx, name := t.Context(), aws.String("life")
	first, second := harness.ReadFile(t, firstFile), harness.ReadFile(t, secondFile)
	variables := d.FirstKey()
	client := lambda.New(lambda.Options{
		Region: variables["AWS_DEFAULT_REGION"], BaseEndpoint: aws.String(variables["AWS_ENDPOINT_URL_LAMBDA"]), RetryMaxAttempts: 1,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: variables["AWS_ACCESS_KEY_ID"], SecretAccessKey: variables["AWS_SECRET_ACCESS_KEY"]}, nil
		}),
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	code := func(err error) string {
		var e smithy.APIError
		if errors.As(err, &e) {
			return e.ErrorCode()
		}
		return fmt.Sprint(err)
	}
	invoke := func() string {
		t.Helper()
		out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: name, Payload: []byte("{}"), LogType: types.LogTypeTail})
		must(err)
		tail, err := base64.StdEncoding.DecodeString(aws.ToString(out.LogResult))
		must(err)
		got.Tail = string(tail)
		return string(out.Payload)
	}
	updated := func() {
		t.Helper()
		must(lambda.NewFunctionUpdatedV2Waiter(client).Wait(ctx, &lambda.GetFunctionInput{FunctionName: name}, harness.Patience))
	}

	created, err := client.CreateFunction(ctx, &lambda.CreateFunctionInput{
		FunctionName: name, Runtime: types.RuntimeProvidedal2023, Handler: aws.String("x"), Role: aws.String("arn:aws:iam::000000000000:role/none"),
		Timeout: aws.Int32(60), Code: &types.FunctionCode{ZipFile: first}, Environment: &types.Environment{Variables: map[string]string{"MARK": "a"}},
	})
	must(err)
	got.Created = string(created.State)
	must(lambda.NewFunctionActiveV2Waiter(client).Wait(ctx, &lambda.GetFunctionInput{FunctionName: name}, harness.Patience))
	got.Invoked = invoke()
	dry, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: name, InvocationType: types.InvocationTypeDryRun})
	must(err)
	got.DryRun = int(dry.StatusCode)
	_, err = client.Invoke(ctx, &lambda.InvokeInput{FunctionName: name, InvocationType: types.InvocationTypeEvent, Payload: []byte("{}")})
	got.Event = code(err)
	stream, err := client.InvokeWithResponseStream(ctx, &lambda.InvokeWithResponseStreamInput{FunctionName: name, Payload: []byte(`"stream"`)})
	must(err)
	for event := range stream.GetStream().Events() {
		if chunk, ok := event.(*types.InvokeWithResponseStreamResponseEventMemberPayloadChunk); ok {
			got.Streamed += string(chunk.Value.Payload)
		}
	}
	must(stream.GetStream().Close())

	changed, err := client.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: name, ZipFile: second})
	must(err)
	updated()
	got.NewCode = invoke()
	_, err = client.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{
		FunctionName: name, Description: aws.String("changed"), Environment: &types.Environment{Variables: map[string]string{"MARK": "b"}},
	})
	must(err)
	updated()
	got.NewConfiguration = invoke()

	function, err := client.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: name})
	must(err)
	got.Description = aws.ToString(function.Configuration.Description)
	revisions := map[string]bool{*created.RevisionId: true, *changed.RevisionId: true, *function.Configuration.RevisionId: true}
	got.Revisions = len(revisions)
	res, err := http.Get(aws.ToString(function.Code.Location))
	must(err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	must(err)
	got.Downloaded = bytes.Equal(body, second)
	for pages := lambda.NewListFunctionsPaginator(client, &lambda.ListFunctionsInput{}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		must(err)
		for _, f := range page.Functions {
			got.Listed = append(got.Listed, aws.ToString(f.FunctionName))
		}
	}
	_, err = client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: name})
	must(err)
	_, err = client.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: name})
	got.Deleted = code(err)
	return got, nil
}

// The command line has no streaming call.
func TestClientServeCLI(t *testing.T) {
	program := filepath.Join(clientDir(t, "boto3"), "venv/bin/aws")
	wantLife(t, false, func(d *harness.Daemon, first, second string) (life, error) {
		return liveCLI(t, d, program, first, second)
	})
}

var cliError = regexp.MustCompile(`An error occurred \((\w+)\)`)

// liveCLI leads the life with the AWS command line.
func liveCLI(t *testing.T, d *harness.Daemon, program, first, second string) (got life, err error) {
	environment := lifeEnvironment(d)
	run := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), program, append([]string{"--output", "json", "lambda"}, args...)...)
		cmd.Env = environment
		return cmd.Output()
	}
	// aws returns what a command prints, which must succeed.
	aws := func(into any, args ...string) {
		t.Helper()
		out, err := run(args...)
		if err == nil && into != nil {
			err = json.Unmarshal(out, into)
		}
		if err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = fmt.Errorf("%w: %s", err, exit.Stderr)
			}
			t.Fatalf("aws lambda %q: %v", args, err)
		}
	}
	refused := func(args ...string) string {
		_, err := run(args...)
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			if m := cliError.FindSubmatch(exit.Stderr); m != nil {
				return string(m[1])
			}
		}
		return fmt.Sprint(err)
	}
	answer := filepath.Join(t.TempDir(), "answer")
	invoke := func() string {
		t.Helper()
		var out struct{ LogResult []byte }
		aws(&out, "invoke", "--function-name", "life", "--log-type", "Tail", "--payload", "{}", answer)
		got.Tail = string(out.LogResult)
		return string(harness.ReadFile(t, answer))
	}
	type configuration struct{ State, RevisionID, Description string }

	var created, changed configuration
	aws(&created, "create-function", "--function-name", "life", "--runtime", "provided.al2023", "--handler", "x", "--timeout", "60",
		"--role", "arn:aws:iam::000000000000:role/none", "--zip-file", "fileb://"+first, "--environment", "Variables={MARK=a}")
	got.Created = created.State
	aws(nil, "wait", "function-active-v2", "--function-name", "life")
	got.Invoked = invoke()
	var dry struct{ StatusCode int }
	aws(&dry, "invoke", "--function-name", "life", "--invocation-type", "DryRun", answer)
	got.DryRun = dry.StatusCode
	got.Event = refused("invoke", "--function-name", "life", "--invocation-type", "Event", "--payload", "{}", answer)

	aws(&changed, "update-function-code", "--function-name", "life", "--zip-file", "fileb://"+second)
	aws(nil, "wait", "function-updated-v2", "--function-name", "life")
	got.NewCode = invoke()
	aws(nil, "update-function-configuration", "--function-name", "life", "--description", "changed", "--environment", "Variables={MARK=b}")
	aws(nil, "wait", "function-updated-v2", "--function-name", "life")
	got.NewConfiguration = invoke()

	var function struct {
		Configuration configuration
		Code          struct{ Location string }
	}
	aws(&function, "get-function", "--function-name", "life")
	got.Description = function.Configuration.Description
	got.Revisions = len(map[string]bool{created.RevisionID: true, changed.RevisionID: true, function.Configuration.RevisionID: true})
	out, err := exec.CommandContext(t.Context(), "curl", "--silent", "--show-error", "--fail", "--noproxy", "*", function.Code.Location).Output()
	if err != nil {
		return got, err
	}
	got.Downloaded = bytes.Equal(out, harness.ReadFile(t, second))
	var list struct {
		Functions []struct{ FunctionName string }
	}
	aws(&list, "list-functions")
	for _, f := range list.Functions {
		got.Listed = append(got.Listed, f.FunctionName)
	}
	aws(nil, "delete-function", "--function-name", "life")
	got.Deleted = refused("get-function", "--function-name", "life")
	return got, nil
}

// curl signs too, and is on every host.
func TestClientServeCurl(t *testing.T) {
	t.Parallel()
	d := harness.Serve(t, harness.NewFolders(t))
	variables := d.FirstKey()
	curl := func(path string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "curl", append([]string{"--silent", "--show-error", "--noproxy", "*", "--aws-sigv4", "aws:amz:us-east-1:lambda",
			"--user", variables["AWS_ACCESS_KEY_ID"] + ":" + variables["AWS_SECRET_ACCESS_KEY"], variables["AWS_ENDPOINT_URL_LAMBDA"] + path}, args...)...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return string(out)
	}
	first, _ := lifeCode(t)
	body, err := json.Marshal(map[string]any{
		"FunctionName": "life", "Runtime": "provided.al2023", "Handler": "x", "Role": "arn:aws:iam::000000000000:role/none", "Timeout": 60,
		"Code": map[string]any{"ZipFile": harness.ReadFile(t, first)}, "Environment": map[string]any{"Variables": map[string]string{"MARK": "a"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "create.json")
	harness.WriteFile(t, file, body, 0o600)
	if got := curl("/2015-03-31/functions", "-H", "Content-Type: application/json", "--data-binary", "@"+file); !strings.Contains(got, `"State":"Pending"`) {
		t.Fatalf("create: %s", got)
	}
	harness.Eventually(t, harness.Patience, func() string {
		if got := curl("/2015-03-31/functions/life/configuration"); !strings.Contains(got, `"State":"Active"`) {
			return got
		}
		return ""
	})
	if got := curl("/2015-03-31/functions/life/invocations", "-d", "{}"); got != `"one a"` {
		t.Errorf("invoke: %s", got)
	}
	if got := curl("/2015-03-31/functions/"); !strings.Contains(got, `"FunctionName":"life"`) {
		t.Errorf("list: %s", got)
	}
	if got := curl("/2015-03-31/functions/life/invocations", "-d", "{}", "-H", "X-Amz-Invocation-Type: Event"); !strings.Contains(got, "Asynchronous invocations are not supported yet") {
		t.Errorf("Event: %s", got)
	}
	if got := curl("/2015-03-31/functions/life/invocations", "-d", "{}", "-u", variables["AWS_ACCESS_KEY_ID"]+":wrong"); !strings.Contains(got, "signature") {
		t.Errorf("with a wrong secret: %s", got)
	}
}
