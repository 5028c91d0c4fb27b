//go:build integration

package lifecycle

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// httpFunction answers as a function URL's function when the file go-on is in its folder.
const httpFunction = `#!/bin/sh
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
while :; do
	id=$(curl -s -o /tmp/event -D - "$api/next" | tr -d '\r' | sed -n 's/^[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: //p')
	until [ -e go-on ]; do sleep 0.01; done
	curl -s -d '{"statusCode":201,"headers":{"content-type":"text/plain"},"body":"made"}' "$api/$id/response" >/dev/null
done
`

// INV-40, INV-47, SEC-04: the front is at the operator's address and nowhere else, and a
// request that runs when the daemon is asked to end has its response.
func TestHTTPFront(t *testing.T) {
	dir := harness.ShellFunction(t, []byte(httpFunction))
	d := harness.Start(t, "--http=127.0.0.1:0", harness.OneCPU, dir)
	addr := testdaemon.Field(d.WaitFor("answers HTTP requests"), "http")
	if strings.Contains(d.Log.Text(), "other hosts can reach") {
		t.Error("a warning about an address of loopback")
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", "127.0.0.2:"+port); err == nil {
		c.Close()
		t.Error("the front listens at another address too")
	}
	type response struct {
		text string
		err  error
	}
	responses := make(chan response, 1)
	go func() {
		res, err := http.Get("http://" + addr + "/a?b=c")
		if err != nil {
			responses <- response{err: err}
			return
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		responses <- response{fmt.Sprint(res.StatusCode, " ", res.Header.Get("Content-Type"), " ", string(body)), err}
	}()
	d.WaitFor("START RequestId")
	d.Signal(syscall.SIGTERM)
	harness.WriteFile(t, filepath.Join(dir, "go-on"), nil, 0o644)
	if got := <-responses; got.err != nil || got.text != "201 text/plain made" {
		t.Errorf("%+v", got)
	}
	if code := d.WaitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A port that is taken ends the start early.
func TestHTTPFrontPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := harness.Launch(t, harness.NewFolders(t), "--http="+l.Addr().String(), harness.ShellFunction(t, []byte(httpFunction)))
	if code := d.WaitExit(); code != 2 || !strings.Contains(d.Log.Text(), "--http "+l.Addr().String()+": the port is in use") {
		t.Errorf("exit code %d, log %s", code, d.Log.Text())
	}
}
