package actor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// fakeAPI gives out events in turn, to whoever asks, and then answers 503, which ends an
// actor. It keeps what is posted for each.
type fakeAPI struct {
	mu     sync.Mutex
	events []string
	given  int
	posted []string // "path body"
	status int      // of an answer; 0 is 202
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if strings.HasSuffix(req.URL.Path, "/invocation/next") {
		if f.given == len(f.events) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Lambda-Runtime-Aws-Request-Id", string(rune('a'+f.given)))
		w.Header().Set("Lambda-Runtime-Deadline-Ms", "1700000000000")
		io.WriteString(w, f.events[f.given])
		f.given++
		return
	}
	body, _ := io.ReadAll(req.Body)
	f.posted = append(f.posted, req.URL.Path+" "+string(body))
	if f.status == 0 {
		f.status = http.StatusAccepted
	}
	w.WriteHeader(f.status)
}

const response = "/2018-06-01/runtime/invocation/%s/response "

// play runs an actor with a program until it has had all events, and returns what it has
// printed. Its folder is dir.
func play(t *testing.T, dir string, program script.Program, fake *fakeAPI) string {
	t.Helper()
	server := httptest.NewServer(fake)
	defer server.Close()
	file := filepath.Join(dir, script.File)
	if err := os.WriteFile(file, []byte(script.Encode(program)), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := Run(Config{Who: "runtime", API: strings.TrimPrefix(server.URL, "http://"), Program: file, Scratch: dir,
		Exit: func(code int) { t.Errorf("exit %d", code) }, Out: &out, Err: os.Stderr,
		Operations: map[string]Operation{"mine": func(_ context.Context, a *Actor, s script.Step, e *script.Entry) { e.Text = a.Expand(s.Data) }}})
	if err == nil || !strings.Contains(err.Error(), "503") {
		t.Fatalf("Run = %v, want the end of the events", err)
	}
	return out.String()
}

// answer is the body of the response to an event.
func (f *fakeAPI) answer(t *testing.T, id string) []byte {
	t.Helper()
	for _, p := range f.posted {
		if body, ok := strings.CutPrefix(p, fmt.Sprintf(response, id)); ok {
			return []byte(body)
		}
	}
	t.Fatalf("no response for %s in %.300q", id, f.posted)
	return nil
}

func TestEventWithoutStepsIsEchoed(t *testing.T) {
	fake := &fakeAPI{events: []string{`{"key": 1}`, "no JSON"}}
	play(t, t.TempDir(), script.Program{}, fake)
	if a, b := fake.answer(t, "a"), fake.answer(t, "b"); string(a) != `{"key": 1}` || string(b) != "no JSON" || len(fake.posted) != 2 {
		t.Errorf("posted %q", fake.posted)
	}
}

func TestStepsAreDoneAndReported(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	fake := &fakeAPI{events: []string{
		script.Encode(script.Event{Report: true, Steps: []script.Step{
			{Op: "write", Path: file, Data: "x"}, {Op: "write", Path: file, Data: "y"}, {Op: "read", Path: file}, {Op: "read", Path: file, N: 1},
			{Op: "alloc", N: 2}, {Op: "stat", Path: file}, {Op: "mine", Data: "{id} {pid}"}, {Op: "print", Data: "said\n", N: 2},
			{Op: "read", Path: "/nonexistent"}, {Op: "nonsense", Name: "named"}, {Op: "note", Name: "noted"},
		}}),
		script.Encode(script.Event{Report: true, Answered: true, Steps: []script.Step{
			{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/{previous}/response", N: 7},
			{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/{id}/error", Data: "mine"},
		}}),
		script.Encode(script.Event{Report: true}),
		script.Encode(script.Event{Journal: true}),
	}}
	printed := play(t, dir, script.Program{Quiet: true, Starts: [][]script.Step{{{Op: "cwd"}}}}, fake)
	var report script.Report
	if err := json.Unmarshal(fake.answer(t, "a"), &report); err != nil {
		t.Fatal(err)
	}
	got := report.Results
	if len(got) != 11 {
		t.Fatalf("%d results, want one of each step", len(got))
	}
	if report.ID != "a" || report.PID != os.Getpid() || report.Deadline != 1700000000000 || report.Received < report.Started/1000 || len(report.Init) != 1 || report.Previous != nil {
		t.Errorf("report %+v", report)
	}
	if got[2].Text != "xy" || got[3].Text != "x" || got[4].N != 2 || got[5].N != 2 || got[6].Text != fmt.Sprint("a ", os.Getpid()) ||
		syscall.Errno(got[8].Errno) != syscall.ENOENT || got[9].Name != "named" || got[9].Error == "" {
		t.Errorf("results %+v", got)
	}
	if list := script.Printed(printed, "runtime", "noted"); strings.Count(printed, "said\n") != 2 || len(list) != 1 {
		t.Errorf("printed %q", printed)
	}
	if want := fmt.Sprintf(response, "a") + "xxxxxxx"; len(fake.posted) != 5 || fake.posted[1] != want || fake.posted[2] != "/2018-06-01/runtime/invocation/b/error mine" {
		t.Errorf("posted %q, want %q, an error and no answer of the actor", fake.posted, want)
	}
	if err := json.Unmarshal(fake.answer(t, "c"), &report); err != nil || len(report.Previous) != 2 || report.Previous[1].Status != http.StatusAccepted {
		t.Errorf("previous %+v, %v", report.Previous, err)
	}
	var journal script.Entries
	if err := json.Unmarshal(fake.answer(t, "d"), &journal); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range journal {
		names = append(names, e.Name)
	}
	if want := "start cwd noted"; strings.Join(names, " ") != want {
		t.Errorf("the journal has %q, want %s: the others are in reports", names, want)
	}
}

// A play leaves its entries in the journal, and its program may have them printed.
func TestPlayIsNoted(t *testing.T) {
	fake := &fakeAPI{events: []string{
		script.Encode(script.Event{Play: "p", Steps: []script.Step{{Op: "cwd"}, {Op: "sleep", MS: 1, Name: "later", Background: true}, {Op: "wait", Name: "later", MS: 60_000}}}),
		script.Encode(script.Event{Journal: true}),
	}}
	printed := play(t, t.TempDir(), script.Program{Announce: true}, fake)
	var journal script.Entries
	if err := json.Unmarshal(fake.answer(t, "b"), &journal); err != nil {
		t.Fatal(err)
	}
	of := journal.Of("p")
	if len(of) != 4 || len(of.Named("next")) != 1 || len(of.Named("later")) != 1 || of.Named("wait later")[0].N != 1 || len(journal.Named("start")) != 1 {
		t.Errorf("journal %+v", journal)
	}
	if n := strings.Count(printed, "\n"); n != len(journal)+1 { // and the refusal of an event that comes after it
		t.Errorf("%d lines are printed of %d entries", n, len(journal))
	}
}

// An answer has the beginning of a journal that is too long for it, in whole entries.
func TestLongJournal(t *testing.T) {
	dir := t.TempDir()
	line := script.Encode(script.Entry{Who: "other", Name: "x", Text: strings.Repeat("x", 1000)}) + "\n"
	n := script.JournalLimit/len(line) + 10
	if err := os.WriteFile(filepath.Join(dir, "conformance.journal"), []byte(strings.Repeat(line, n)), 0o644); err != nil {
		t.Fatal(err)
	}
	fake := &fakeAPI{events: []string{script.Encode(script.Event{Journal: true})}}
	play(t, dir, script.Program{}, fake)
	var journal script.Entries
	if err := json.Unmarshal(fake.answer(t, "a"), &journal); err != nil || len(journal) != n-10 {
		t.Errorf("%d entries, %v; want %d", len(journal), err, n-10)
	}
}

// In managed mode each worker asks for events, and one that comes too late goes on (RT-63).
func TestManagedWorkers(t *testing.T) {
	t.Setenv("AWS_LAMBDA_MAX_CONCURRENCY", "3")
	dir := t.TempDir()
	const workers = 3
	api := &rendezvous{want: workers, met: make(chan struct{})}
	server := httptest.NewServer(api)
	defer server.Close()
	ended := make(chan int, workers)
	err := Run(Config{Who: "runtime", API: strings.TrimPrefix(server.URL, "http://"), Program: filepath.Join(dir, "none"), Scratch: dir,
		Exit: func(code int) { ended <- code }, Out: io.Discard, Err: io.Discard})
	if err == nil {
		t.Error("the actor ended without a reason")
	}
	for range workers - 1 {
		if code := <-ended; code != 1 {
			t.Errorf("exit %d of a worker", code)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "conformance.journal"))
	if n := strings.Count(string(text), `"name":"late"`); err != nil || n != workers {
		t.Errorf("%d late answers are noted, want one of each worker; %v", n, err)
	}
}

// rendezvous gives an event when so many ask at once, answers 410 to what is posted, and
// then 503.
type rendezvous struct {
	mu    sync.Mutex
	want  int
	asked int
	met   chan struct{}
}

func (r *rendezvous) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !strings.HasSuffix(req.URL.Path, "/next") {
		w.WriteHeader(http.StatusGone)
		return
	}
	r.mu.Lock()
	r.asked++
	n := r.asked
	if n == r.want {
		close(r.met)
	}
	r.mu.Unlock()
	if n > r.want {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	<-r.met
	w.Header().Set("Lambda-Runtime-Aws-Request-Id", fmt.Sprint(n))
	io.WriteString(w, "1")
}
