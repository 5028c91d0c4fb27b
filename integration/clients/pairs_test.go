//go:build integration

package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// callers are the columns of TestClientPair.
func callers(t *testing.T, d *harness.Daemon, dir string) map[string]caller {
	t.Helper()
	venv := filepath.Join(clientDir(t, "boto3"), "venv/bin")
	return map[string]caller{
		"curl -d":       callCurl(d),
		"aws-sdk-go-v2": callSDK(sdkClient(d), dir),
		"client-lambda": callProgram(d, dir, filepath.Join(nodeLayer(t), "bin/node"), filepath.Join(clientDir(t, "javascript"), "caller.mjs")),
		"boto3":         callProgram(d, dir, filepath.Join(venv, "python3"), filepath.Join(clientDir(t, "boto3"), "caller.py")),
		"awscli":        callCLI(d, filepath.Join(venv, "aws")),
	}
}

// callCurl calls with the command of the README, which sends the type of an HTML form.
func callCurl(d *harness.Daemon) caller {
	return func(t *testing.T, c call) (called, error) {
		out, err := exec.CommandContext(t.Context(), "curl", "-sS", "-d", c.payload, functionURL(d, c.name)).Output()
		return called{Payload: string(out)}, err
	}
}

func functionURL(d *harness.Daemon, name string) string {
	return "http://" + d.Addr + "/2015-03-31/functions/" + name + "/invocations"
}

// callTyped calls with a content type; "" sends none.
func callTyped(d *harness.Daemon, contentType string) caller {
	return func(t *testing.T, c call) (called, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, functionURL(d, c.name), bytes.NewReader([]byte(c.payload)))
		if err != nil {
			return called{}, err
		}
		if contentType != "" {
			r.Header.Set("Content-Type", contentType)
		}
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			return called{}, err
		}
		defer a.Body.Close()
		var body bytes.Buffer
		_, err = body.ReadFrom(a.Body)
		return called{Status: a.StatusCode, Error: a.Header.Get("X-Amz-Function-Error"), Payload: body.String()}, err
	}
}

// RT-20: whoever calls, the handler gets the event parsed: clients of runtimes look at the
// content type that the platform gives them, and callers send different ones.
func TestClientPair(t *testing.T) {
	t.Parallel()
	clients := append([]runtimeClient{goClient(t), node3Client(t), pythonClient(t), javaClient(t), rustClient(t)}, node4Clients(t)...)
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) {
			d := harness.Start(t, append(append([]string{"--memory=1769", "--timeout=60s"}, c.flags...), c.dir)...)
			for name, do := range callers(t, d, c.dir) {
				t.Run(name, func(t *testing.T) { wantParsed(t, do) })
			}
			t.Run("any content type", func(t *testing.T) {
				for _, kind := range []string{"", "application/json", "application/json; charset=utf-8", "application/octet-stream", "application/x-amz-json-1.1", "text/plain"} {
					wantParsed(t, callTyped(d, kind))
				}
			})
		})
	}
}

// wantParsed calls a function of the matrix and wants the handler to have the event's members.
func wantParsed(t *testing.T, do caller) {
	t.Helper()
	got, err := do(t, call{"RequestResponse", "function", `{"hello":"wörld"}`})
	if err != nil {
		t.Fatal(err)
	}
	var answer clientAnswer
	if err := json.Unmarshal([]byte(got.Payload), &answer); err != nil || fmt.Sprint(answer.Event) != "map[hello:wörld]" || got.Error != "" {
		t.Errorf("%+v, %v; want the event back as an object", got, err)
	}
}
