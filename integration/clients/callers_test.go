//go:build integration

package clients

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// call is what a caller shall do.
type call struct {
	kind    string // RequestResponse, Event, DryRun, or stream
	name    string // of the function
	payload string
}

// called is what the caller saw. Callers that are programs print it as JSON, after a
// line {"chunk": "…"} for each chunk of a stream.
type called struct {
	Status             int
	Version, ID, Tail  string // the tail in base64
	Error, Details     string // the function's error; of a stream, how it ended
	Payload, Exception string // Exception is the name of the API's error
}

// caller does a call. When it has read the first chunk of a stream, it lets it go on.
type caller func(t *testing.T, c call) (called, error)

// callSDK calls through the AWS SDK for Go; dir is the function's folder.
func callSDK(client *lambda.Client, dir string) caller {
	return func(t *testing.T, c call) (called, error) {
		if c.kind == "stream" {
			return streamSDK(t, client, dir, c)
		}
		out, err := client.Invoke(t.Context(), &lambda.InvokeInput{
			FunctionName: &c.name, Payload: []byte(c.payload), InvocationType: types.InvocationType(c.kind), LogType: types.LogTypeTail,
		})
		if err != nil {
			return apiError(err)
		}
		id, _ := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
		return called{Status: int(out.StatusCode), Version: aws.ToString(out.ExecutedVersion), ID: id, Tail: aws.ToString(out.LogResult),
			Error: aws.ToString(out.FunctionError), Payload: string(out.Payload)}, nil
	}
}

// apiError is what was called if the API answered an error.
func apiError(err error) (called, error) {
	var api smithy.APIError
	var resp *awshttp.ResponseError
	if !errors.As(err, &api) || !errors.As(err, &resp) {
		return called{}, err
	}
	return called{Status: resp.HTTPStatusCode(), Exception: api.ErrorCode()}, nil
}

func streamSDK(t *testing.T, client *lambda.Client, dir string, c call) (called, error) {
	out, err := client.InvokeWithResponseStream(t.Context(), &lambda.InvokeWithResponseStreamInput{
		FunctionName: &c.name, Payload: []byte(c.payload), LogType: types.LogTypeTail,
	})
	if err != nil {
		return apiError(err)
	}
	id, _ := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
	got := called{Status: int(out.StatusCode), Version: aws.ToString(out.ExecutedVersion), ID: id}
	events := out.GetStream()
	defer events.Close()
	for event := range events.Events() {
		switch e := event.(type) {
		case *types.InvokeWithResponseStreamResponseEventMemberPayloadChunk:
			got.Payload += string(e.Value.Payload)
			letGoOn(t, dir, got.Payload)
		case *types.InvokeWithResponseStreamResponseEventMemberInvokeComplete:
			got.Error, got.Details, got.Tail = aws.ToString(e.Value.ErrorCode), aws.ToString(e.Value.ErrorDetails), aws.ToString(e.Value.LogResult)
		}
	}
	return got, events.Err()
}

// letGoOn makes the file go-on, which goes with the test, as soon as the first chunk of
// the function is among what was read.
func letGoOn(t *testing.T, dir, read string) {
	t.Helper()
	if !strings.Contains(read, "first ") {
		return
	}
	file := filepath.Join(dir, "go-on")
	harness.WriteFile(t, file, nil, 0o644)
	t.Cleanup(func() { os.Remove(file) })
}

// callProgram calls through a program that takes endpoint, kind, name and payload.
func callProgram(d *harness.Daemon, dir string, argv ...string) caller {
	return func(t *testing.T, c call) (called, error) {
		cmd := exec.CommandContext(t.Context(), argv[0], append(argv[1:], "http://"+d.Addr, c.kind, c.name, c.payload)...)
		cmd.Env, cmd.Stderr = awsEnvironment(), os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			return called{}, err
		}
		if err := cmd.Start(); err != nil {
			return called{}, err
		}
		var got called
		text := ""
		for lines := json.NewDecoder(out); lines.More(); {
			var line struct {
				Chunk *string
				called
			}
			if err := lines.Decode(&line); err != nil {
				return called{}, errors.Join(err, cmd.Wait())
			}
			if line.Chunk != nil {
				text += *line.Chunk
				letGoOn(t, dir, text)
			} else {
				got = line.called
			}
		}
		if c.kind == "stream" {
			got.Payload = text
		}
		return got, cmd.Wait()
	}
}

// callCLI calls through the AWS command line.
func callCLI(d *harness.Daemon, aws string) caller {
	return func(t *testing.T, c call) (called, error) {
		answer := filepath.Join(t.TempDir(), "answer")
		cmd := exec.CommandContext(t.Context(), aws, "lambda", "invoke", "--endpoint-url", "http://"+d.Addr, "--function-name", c.name,
			"--invocation-type", c.kind, "--payload", c.payload, "--log-type", "Tail", answer)
		cmd.Env = awsEnvironment()
		out, err := cmd.Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			_, rest, _ := strings.Cut(string(exit.Stderr), "An error occurred (")
			name, _, found := strings.Cut(rest, ")")
			if !found {
				return called{}, fmt.Errorf("%w: %s", err, exit.Stderr)
			}
			return called{Exception: name}, nil
		}
		if err != nil {
			return called{}, err
		}
		var printed struct {
			StatusCode                                int
			FunctionError, LogResult, ExecutedVersion string
		}
		if err := json.Unmarshal(out, &printed); err != nil {
			return called{}, fmt.Errorf("%w: %s", err, out)
		}
		return called{Status: printed.StatusCode, Version: printed.ExecutedVersion, Tail: printed.LogResult, Error: printed.FunctionError,
			Payload: string(harness.ReadFile(t, answer))}, nil
	}
}

// runCaller runs the outcomes of the matrix for a caller, each a subtest, with the
// function on aws-lambda-go.
func runCaller(t *testing.T, name string, streams bool, with func(d *harness.Daemon, dir string) caller) {
	t.Run(name, func(t *testing.T) {
		dir := goFunction(t)
		do := with(harness.Start(t, "--memory=1769", "--timeout=8s", "--log-format=JSON", dir), dir)
		wantCalls(t, streams, func(t *testing.T, c call) called {
			t.Helper()
			got, err := do(t, c)
			if err != nil {
				t.Fatal(err)
			}
			return got
		})
	})
}

// wantCalls does calls and wants what the API promises.
func wantCalls(t *testing.T, streams bool, do func(*testing.T, call) called) {
	invoke := func(t *testing.T, payload string) called {
		t.Helper()
		return do(t, call{"RequestResponse", "function", payload})
	}
	t.Run("succeeds", func(t *testing.T) {
		var answer clientAnswer
		got := invoke(t, `{"hello":"wörld"}`)
		if err := json.Unmarshal([]byte(got.Payload), &answer); err != nil || answer.Event["hello"] != "wörld" || got.Status != 200 || got.Version != "$LATEST" || got.Error != "" {
			t.Errorf("%+v, %v", got, err)
		}
		if got.ID != answer.RequestID && got.ID != "" { // the command line does not tell it
			t.Errorf("id %s, the function's is %s", got.ID, answer.RequestID)
		}
	})
	t.Run("fails", func(t *testing.T) {
		if got := invoke(t, `{"do":"fail"}`); got.Status != 200 || got.Error != "Unhandled" || !strings.Contains(got.Payload, `"errorType":"Refused"`) {
			t.Errorf("%+v", got)
		}
	})
	if streams {
		t.Run("streams", func(t *testing.T) {
			got := do(t, call{"stream", "function", `{"do":"stream"}`})
			if got.Status != 200 || got.Payload != "first second" || got.Error != "" || got.Version != "$LATEST" {
				t.Errorf("%+v", got)
			}
			wantTail(t, got, "platform.report")
			if got := do(t, call{"stream", "function", `{"do":"fail"}`}); !strings.Contains(got.Details, `"errorType":"Refused"`) || got.Error != "Unhandled" {
				t.Errorf("a function that fails: %+v", got)
			}
		})
	}
	t.Run("logs JSON", func(t *testing.T) { wantTail(t, invoke(t, `{"do":"log"}`), "a message") })
	t.Run("times out", func(t *testing.T) {
		got := invoke(t, `{"do":"sleep"}`)
		if got.Status != 200 || got.Error != "Unhandled" || !strings.Contains(got.Payload, "Task timed out after 8.00 seconds") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("other types", func(t *testing.T) {
		if got := do(t, call{"DryRun", "function", `{}`}); got.Status != 204 {
			t.Errorf("DryRun: %+v", got)
		}
		if got := do(t, call{"Event", "function", `{}`}); got.Status != 202 {
			t.Errorf("Event: %+v", got)
		}
		if got := do(t, call{"RequestResponse", "nobody", `{}`}); got.Exception != "ResourceNotFoundException" {
			t.Errorf("unknown function: %+v", got)
		}
	})
}

// wantTail wants text in the end of the log, and all of it to be lines of JSON.
func wantTail(t *testing.T, got called, text string) {
	t.Helper()
	tail, err := base64.StdEncoding.DecodeString(got.Tail)
	if err != nil || !strings.Contains(string(tail), text) {
		t.Errorf("tail %q, %v; want %q in it", tail, err, text)
	}
	for line := range strings.Lines(string(tail)) {
		if !json.Valid([]byte(line)) {
			t.Errorf("line %q of the tail", line)
		}
	}
}

// RIC-11.
func TestClientCallerGo(t *testing.T) {
	t.Parallel()
	version := pinned(t, "../../go.mod", `github.com/aws/aws-sdk-go-v2/service/lambda v(\S+)`)
	runCaller(t, "aws-sdk-go-v2/service/lambda@"+version, true, func(d *harness.Daemon, dir string) caller { return callSDK(sdkClient(d), dir) })
}

// awsEnvironment gives programs credentials and a region.
func awsEnvironment() []string {
	return append(os.Environ(), "AWS_ACCESS_KEY_ID=dummy", "AWS_SECRET_ACCESS_KEY=dummy", "AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1",
		"AWS_EC2_METADATA_DISABLED=true")
}

// RIC-11.
func TestClientCallerJavaScript(t *testing.T) {
	t.Parallel()
	version := pinned(t, "javascript/package.json", `"@aws-sdk/client-lambda": "(.+)"`)
	node, program := filepath.Join(nodeLayer(t), "bin/node"), filepath.Join(clientDir(t, "javascript"), "caller.mjs")
	runCaller(t, "@aws-sdk/client-lambda@"+version, true, func(d *harness.Daemon, dir string) caller { return callProgram(d, dir, node, program) })
}

// RIC-11.
func TestClientCallerBoto3(t *testing.T) {
	t.Parallel()
	version := pinned(t, "boto3/requirements.txt", `boto3==(\S+)`)
	venv := clientDir(t, "boto3")
	runCaller(t, "boto3@"+version, true, func(d *harness.Daemon, dir string) caller {
		return callProgram(d, dir, filepath.Join(venv, "venv/bin/python3"), filepath.Join(venv, "caller.py"))
	})
}

// RIC-11: the command line has no streaming call.
func TestClientCallerCLI(t *testing.T) {
	t.Parallel()
	version := pinned(t, "boto3/requirements.txt", `awscli==(\S+)`)
	runCaller(t, "awscli@"+version, false, func(d *harness.Daemon, dir string) caller {
		return callCLI(d, filepath.Join(clientDir(t, "boto3"), "venv/bin/aws"))
	})
}
