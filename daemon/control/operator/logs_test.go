package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/internal/message"
)

// Lines come as the worker sends them. Whoever asks for what is not there is told so, and each
// request is in the audit log.
func TestReadLogs(t *testing.T) {
	known, failed := true, error(nil)
	var asked admin.LogQuery
	d := newDesk(t, func(c *Config) {
		c.Known = func(context.Context, string) (bool, error) { return known, nil }
		c.Logs = func(_ context.Context, q admin.LogQuery, isKnown bool) (io.ReadCloser, error) {
			if asked = q; isKnown != known {
				t.Errorf("the worker is told %v", isKnown)
			}
			return io.NopCloser(strings.NewReader("a line\n")), failed
		}
	})
	if code, text := d.ask("GET", admin.LogsPath+"?function=f&from=1%3A2&since=5000&follow=1", ""); code != 200 || text != "a line\n" {
		t.Errorf("%d %s", code, text)
	}
	if asked.Function != "f" || asked.From != "1:2" || asked.Since.Unix() != 5 || !asked.Follow {
		t.Errorf("the worker was asked for %+v", asked)
	}
	for _, name := range []string{"", "a/b", "a%0Ab"} {
		if code, text := d.ask("GET", admin.LogsPath+"?function="+name, ""); code != 400 || !strings.Contains(text, "is no name of a function") {
			t.Errorf("%q: %d %s", name, code, text)
		}
	}
	if code, _ := d.ask("GET", admin.LogsPath+"?function=f&since=now", ""); code != 400 {
		t.Errorf("a time that is none: %d", code)
	}
	known = false
	for err, want := range map[error]string{
		ErrNoLines: "404 there is no function f", message.ErrNoWorker: "503 the worker is being started", ErrTooManyReaders: "429 too many",
		errors.New("odd"): "500 odd",
	} {
		failed = err
		code, text := d.ask("GET", admin.LogsPath+"?function=f", "")
		if got := fmt.Sprint(code, " ", text); !strings.Contains(strings.Replace(got, `{"error":"`, "", 1), want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if len(d.readers) != 0 {
		t.Errorf("%d places are taken", len(d.readers))
	}
	if log := d.audit.String(); strings.Count(log, `"action":"read-logs"`) != 5 || !strings.Contains(log, `"function":"f"`) {
		t.Errorf("audit:\n%s", log)
	}
}

// Only callers on the operators' socket need no signature.
func TestCaller(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ConnContext: WithPeer, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := Caller(r)
		fmt.Fprint(w, c.Key, ok, c.Allowed == nil)
	})}
	go server.Serve(l)
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
	res, err := client.Get("http://x/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if text, _ := io.ReadAll(res.Body); !strings.HasPrefix(string(text), "uid:") || !strings.HasSuffix(string(text), "true true") {
		t.Errorf("%s", text)
	}
	if c, ok := Caller(httptest.NewRequest("GET", "/", nil)); ok {
		t.Errorf("a request of the worker is of %+v", c)
	}
}
