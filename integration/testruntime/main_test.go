package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/integration/script"
)

// fakeAPI gives out events in turn and keeps what is posted for each.
type fakeAPI struct {
	events []string
	given  int
	posted []string // "path status-less body"
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if strings.HasSuffix(req.URL.Path, "/invocation/next") {
		w.Header().Set("Lambda-Runtime-Aws-Request-Id", string(rune('a'+f.given)))
		w.Header().Set("Lambda-Runtime-Deadline-Ms", "1700000000000")
		io.WriteString(w, f.events[f.given])
		f.given++
		return
	}
	body, _ := io.ReadAll(req.Body)
	f.posted = append(f.posted, req.URL.Path+" "+string(body))
	w.WriteHeader(http.StatusAccepted)
}

func newTestRuntime(t *testing.T, events ...string) (*testRuntime, *fakeAPI) {
	fake := &fakeAPI{events: events}
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	return &testRuntime{base: server.URL, client: server.Client()}, fake
}

func TestEventWithoutStepsIsEchoed(t *testing.T) {
	r, fake := newTestRuntime(t, `{"key": 1}`)
	if err := r.invocation(); err != nil {
		t.Fatal(err)
	}
	if want := `/2018-06-01/runtime/invocation/a/response {"key": 1}`; len(fake.posted) != 1 || fake.posted[0] != want {
		t.Errorf("posted %q, want %q", fake.posted, want)
	}
}

func TestStepsAreDoneAndReported(t *testing.T) {
	file := t.TempDir() + "/f"
	r, fake := newTestRuntime(t,
		script.Encode(script.Event{Steps: []script.Step{
			{Op: "write", Path: file, Data: "x"}, {Op: "write", Path: file, Data: "y"}, {Op: "read", Path: file},
			{Op: "alloc", N: 2}, {Op: "spin", MS: 5}, {Op: "open", N: 3}, {Op: "fill", Path: file, N: 3 << 20},
			{Op: "fill_inodes", Path: file + ".d", N: 4}, {Op: "exec", Argv: []string{"sh", "-c", "echo hi; exit 3"}},
			{Op: "read", Path: "/nonexistent"}, {Op: "nonsense"},
		}}),
		script.Encode(script.Event{Steps: []script.Step{
			{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/{previous}/response", N: 7},
			{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/{id}/error", Data: "mine"},
		}}))
	if err := r.invocation(); err != nil {
		t.Fatal(err)
	}
	var report script.Report
	_, body, _ := strings.Cut(fake.posted[0], " ")
	if err := json.Unmarshal([]byte(body), &report); err != nil {
		t.Fatal(err)
	}
	got := report.Results
	if report.ID != "a" || got[2].Text != "xy" || got[3].N != 2 || got[4].N < 5 || got[5].N != 3 || got[6].N != 3<<20 ||
		got[7].N != 4 || got[8].Text != "hi\n" || got[8].Status != 3 || got[9].Errno != 2 || got[10].Error == "" {
		t.Errorf("report %+v", report)
	}
	if err := r.invocation(); err != nil {
		t.Fatal(err)
	}
	want := []string{"/2018-06-01/runtime/invocation/a/response 0000000", "/2018-06-01/runtime/invocation/b/error mine"}
	if len(fake.posted) != 3 || fake.posted[1] != want[0] || fake.posted[2] != want[1] {
		t.Errorf("posted %q, want %q and no answer of its own", fake.posted[1:], want)
	}
	if r.last[1].Status != http.StatusAccepted {
		t.Errorf("kept %+v", r.last)
	}
}
