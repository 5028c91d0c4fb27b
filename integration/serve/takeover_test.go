//go:build integration

package serve

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// takeover is a daemon whose unprivileged processes do what requests say.
type takeover struct {
	*harness.Daemon
	client *http.Client
}

// launch starts a daemon without waiting for anything.
func launch(t *testing.T, f harness.Folders, args ...string) *takeover {
	t.Helper()
	cmd := exec.Command(filepath.Join(harness.Testbin, "takeover"), append(f.Flags(), args...)...)
	d := &harness.Daemon{Daemon: testdaemon.NewDaemon(cmd, f.Folders), T: t, Folders: f}
	d.Run()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &takeover{Daemon: d, client: &http.Client{Transport: transport, Timeout: harness.Patience}}
}

// start starts a daemon and waits until both processes answer.
func start(t *testing.T, f harness.Folders, args ...string) *takeover {
	t.Helper()
	d := launch(t, f, args...)
	d.Listening()
	d.ready()
	return d
}

// ready waits until the control process answers, and returns its process id.
func (d *takeover) ready() (pid int) {
	d.T.Helper()
	harness.Eventually(d.T, harness.Patience, func() string {
		said, err := d.ask("control/pid", nil)
		pid = said.PID
		if err != nil {
			return err.Error()
		}
		return ""
	})
	return pid
}

// said is the answer to a request: what became of it.
type said struct {
	PID   int
	Said  json.RawMessage
	Error string
	Kinds []string

	retryAfter string
}

// ask sends a request to one of the processes.
func (d *takeover) ask(path string, body []byte) (s said, err error) {
	res, err := d.client.Post("http://"+d.Addr+"/"+path, "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return s, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		s.retryAfter = res.Header.Get("Retry-After")
		return s, fmt.Errorf("%s: %s", res.Status, text)
	}
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	return s, err
}

// do is ask for a request that must be answered.
func (d *takeover) do(path string, body []byte) said {
	d.T.Helper()
	s, err := d.ask(path, body)
	if err != nil {
		d.T.Fatalf("%s: %v", path, err)
	}
	return s
}

// succeed is do for what must succeed.
func (d *takeover) succeed(path string, body []byte) said {
	d.T.Helper()
	s := d.do(path, body)
	if s.Error != "" {
		d.T.Fatalf("%s: %s", path, s.Error)
	}
	return s
}

// fail is do for what must fail with a kind of error.
func (d *takeover) fail(kind, path string, body []byte) {
	d.T.Helper()
	if s := d.do(path, body); s.Error == "" || !slices.Contains(s.Kinds, kind) {
		d.T.Errorf("%s: %+v, want an error of the kind %q", path, s, kind)
	}
}

// question sends the control process a question of the worker's, and returns status and answer.
func (d *takeover) question(method, path, body string) string {
	d.T.Helper()
	req, err := http.NewRequestWithContext(d.T.Context(), method, "http://"+d.Addr+"/"+path, strings.NewReader(body))
	if err != nil {
		d.T.Fatal(err)
	}
	req.Host = message.ControlHost
	res, err := d.client.Do(req)
	if err != nil {
		d.T.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		d.T.Fatal(err)
	}
	return fmt.Sprint(res.StatusCode, " ", string(text))
}

// put gives the control process a zip, and returns its digest.
func (d *takeover) put(content []byte) message.Digest {
	d.T.Helper()
	d.succeed("control/put", content)
	return sha256.Sum256(content)
}

// zipOf returns a zip of files with that content; names that end with a slash are folders.
func zipOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) { // the same files make the same zip
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(f, files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// revision returns a revision of the smallest function.
func revision(number uint64, code message.Digest, layers ...message.Digest) message.Revision {
	return message.Revision{ID: function.ID{Epoch: 1, Number: number}, MemoryMB: 128, TmpMB: 512, MicroCPU: 1_000_000, PIDs: 64, Code: code, Layers: layers}
}

// form returns the revision in the form in which the control process takes it.
func form(t *testing.T, rev message.Revision) []byte {
	t.Helper()
	b, err := json.Marshal(rev)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// registered is the answer to control/register.
type registered struct {
	Program function.Program
	Sent    int
}

// register registers a revision, and returns what root has found in it and how many files it
// wanted.
func (d *takeover) register(rev message.Revision) (r registered) {
	d.T.Helper()
	s := d.succeed("control/register", form(d.T, rev))
	if err := json.Unmarshal(s.Said, &r); err != nil {
		d.T.Fatal(err)
	}
	return r
}

// workerPID waits until the worker answers, and returns its process id.
func (d *takeover) workerPID() (pid int) {
	d.T.Helper()
	harness.Eventually(d.T, harness.Patience, func() string {
		s, err := d.ask("worker/pid", nil)
		pid = s.PID
		if err != nil {
			return err.Error()
		}
		return ""
	})
	return pid
}

func hexOf(d message.Digest) string { return hex.EncodeToString(d[:]) }
