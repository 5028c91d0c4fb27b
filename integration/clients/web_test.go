//go:build integration

package clients

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// Web applications on unmodified frameworks behind --http. All do the same:
//
//	GET, HEAD /hello/NAME?greeting=G&n=N…  {"text": "G, NAME", "n": ["N", …]} as JSON
//	POST /echo       the body as it is, as application/octet-stream
//	GET /login       redirects to /hello/you with 302, and sets the cookies a=b and c=d
//	GET /whoami      the values of the cookies a and c as a JSON string, such as "b d"
//	GET /parts       of those that stream: "first ", and when the file go-on is in the
//	                 function's folder, "second"
//	anything else    404

// web is a front under test.
type web struct {
	t    *testing.T
	base string // its URL, without a slash at the end
	http *http.Client
}

// startWeb starts a daemon with --http.
func startWeb(t *testing.T, args ...string) *web {
	t.Helper()
	d := harness.Start(t, append([]string{"--http=127.0.0.1:0", "--memory=1769"}, args...)...)
	addr := testdaemon.Field(d.WaitFor("answers HTTP requests"), "http")
	keepRedirects := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &web{t, "http://" + addr, &http.Client{CheckRedirect: keepRedirects, Timeout: 2 * harness.Patience}}
}

// ask sends a request, and returns the response with its body.
func (w *web) ask(method, target, body string, header ...string) (*http.Response, string) {
	w.t.Helper()
	req, err := http.NewRequest(method, w.base+target, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res, string(text)
}

// wantWeb asks an application for everything that it has, but a stream.
func (w *web) wantWeb() {
	w.t.Helper()
	res, text := w.ask("GET", "/hello/w%C3%B6rld?greeting=hi%20there%26&n=1&n=%2F2", "")
	var got struct {
		Text string
		N    []string
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || got.Text != "hi there&, wörld" || !slices.Equal(got.N, []string{"1", "/2"}) ||
		res.StatusCode != 200 || !strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		w.t.Errorf("/hello: %d %v %s, %v", res.StatusCode, res.Header, text, err)
	}
	sent := "\x00\xff\xfe" + strings.Repeat("a long binary body\n", 100)
	if res, text := w.ask("POST", "/echo", sent, "Content-Type", "application/octet-stream"); text != sent || res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/octet-stream" {
		w.t.Errorf("/echo: %d %v %q", res.StatusCode, res.Header, text)
	}
	if _, text := w.ask("POST", "/echo", "grüße", "Content-Type", "text/plain; charset=utf-8"); text != "grüße" {
		w.t.Errorf("/echo of text: %q", text)
	}
	res, _ = w.ask("GET", "/login", "")
	cookies := map[string]string{}
	for _, c := range res.Cookies() {
		cookies[c.Name] = c.Value
	}
	if res.StatusCode != http.StatusFound || res.Header.Get("Location") != "/hello/you" || len(res.Cookies()) != 2 || cookies["a"] != "b" || cookies["c"] != "d" {
		w.t.Errorf("/login: %d %v", res.StatusCode, res.Header)
	}
	if _, text := w.ask("GET", "/whoami", "", "Cookie", "a=b; c=d"); strings.TrimSpace(text) != `"b d"` {
		w.t.Errorf("/whoami: %s", text)
	}
	if res, _ := w.ask("GET", "/nothing", ""); res.StatusCode != http.StatusNotFound {
		w.t.Errorf("/nothing: %d", res.StatusCode)
	}
	if res, text := w.ask("HEAD", "/hello/you", ""); res.StatusCode != 200 || text != "" {
		w.t.Errorf("HEAD: %d %q", res.StatusCode, text)
	}
}

// wantParts wants the first part of a stream while the function still runs. dir is the
// function's folder.
func (w *web) wantParts(dir string) {
	w.t.Helper()
	res, err := w.http.Get(w.base + "/parts")
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	first := make([]byte, len("first "))
	if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "first " {
		w.t.Fatalf("%q, %v", first, err)
	}
	file := filepath.Join(dir, "go-on")
	harness.WriteFile(w.t, file, nil, 0o644)
	defer os.Remove(file)
	if rest, err := io.ReadAll(res.Body); string(rest) != "second" || err != nil {
		w.t.Errorf("%q, %v", rest, err)
	}
}

// INV-40 to INV-53: FastAPI, by Mangum.
func TestClientWebFastAPI(t *testing.T) {
	t.Parallel()
	startWeb(t, "--runtime="+pythonRuntime(t), "--handler=app.handler", clientDir(t, "webpython")).wantWeb()
}

// INV-40 to INV-53: Express, by serverless-http.
func TestClientWebExpress(t *testing.T) {
	t.Parallel()
	startWeb(t, "--runtime=nodejs20.x", "--handler=express.handler", "--layer", clientDir(t, "node3"), clientDir(t, "webnode")).wantWeb()
}

// INV-40 to INV-53: Hono, by its adapters for whole answers and for streams, each in the
// invoke mode that it is made for. The other tests leave the mode to the answer.
func TestClientWebHono(t *testing.T) {
	t.Parallel()
	for handler, mode := range map[string]string{"handler": "BUFFERED", "streaming": "RESPONSE_STREAM"} {
		t.Run(handler, func(t *testing.T) {
			dir := t.TempDir() // of its own, for the file go-on
			runIn(t, "/", "cp", "-r", clientDir(t, "webnode")+"/.", dir)
			w := startWeb(t, "--runtime=nodejs20.x", "--handler=hono."+handler, "--http-invoke-mode="+mode, "--layer", clientDir(t, "node3"), dir)
			w.wantWeb()
			if handler == "streaming" {
				w.wantParts(dir)
			}
		})
	}
}

// INV-40 to INV-53: net/http, by lambdaurl, which always streams.
func TestClientWebGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	harness.WriteFile(t, filepath.Join(dir, "bootstrap"), harness.ReadFile(t, filepath.Join(clientDir(t, "webgo"), "bootstrap")), 0o755)
	w := startWeb(t, dir)
	w.wantWeb()
	w.wantParts(dir)
}

// The Lambda Web Adapter with an ordinary web server, in both of its modes.
func TestRealWebAdapterHTTP(t *testing.T) {
	for _, mode := range []string{"buffered", "response_stream"} {
		t.Run(mode, func(t *testing.T) {
			w := startWeb(t, "--env=AWS_LWA_INVOKE_MODE="+mode, "--layer", adapterLayer(t), harness.ShellFunction(t, webServer))
			if res, text := w.ask("GET", "/hello?a=1&b=%202", ""); res.StatusCode != 200 || text != "you asked for /hello?a=1&b=%202" {
				t.Errorf("GET: %d %q", res.StatusCode, text)
			}
			if res, text := w.ask("POST", "/anything", "some text"); res.StatusCode != 201 || !bytes.Contains([]byte(text), []byte(`"got": "some text"`)) {
				t.Errorf("POST: %d %q", res.StatusCode, text)
			}
			if res, _ := w.ask("GET", "/nothing", ""); res.StatusCode != 404 {
				t.Errorf("a path that is not there: %d", res.StatusCode)
			}
			began := time.Now()
			res, err := w.http.Get(w.base + "/parts")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			first := make([]byte, len("one "))
			_, err = io.ReadFull(res.Body, first)
			early := time.Since(began)
			rest, restErr := io.ReadAll(res.Body)
			if err != nil || restErr != nil || string(first)+string(rest) != "one two three" {
				t.Errorf("%q %q, %v %v", first, rest, err, restErr)
			}
			if took := time.Since(began); mode == "response_stream" && took-early < 400*time.Millisecond { // the server pauses for 3 times 400 ms
				t.Errorf("the first part after %v of %v; want each part when it comes", early, took)
			}
		})
	}
}
