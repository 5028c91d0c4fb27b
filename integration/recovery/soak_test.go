//go:build integration

package recovery

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// A cycle is the life of one sandbox: a tenant of its own asks for it, and the next
// tenant's request has it closed. The soak makes many, plain ones and ones with a
// fault, kills its daemon again and again, and wants that nothing is left, lost or
// doubled (SEC-70, SEC-71). See `make soak`.
type soak struct {
	t       *testing.T
	folders harness.Folders
	client  *http.Client
	random  *lockedRand

	args []string // of every daemon

	alone sync.Mutex // held for faults that everybody may feel

	mu        sync.Mutex
	daemon    *harness.Daemon
	daemons   []*harness.Daemon // all there were, the present one included
	disturbed int               // how often such a fault has begun or ended
	requests  map[string]request
}

// request is what is known of one request.
type request struct {
	fate   fate
	daemon *harness.Daemon // that it was sent to
}

// fate is what became of a request, as its caller saw it.
type fate int

const (
	refused  fate = iota // 429 or 503, or nobody listened: it was not accepted
	answered             // with what the function said
	failed               // with an error of the function or of the platform
	lost                 // the connection broke: the daemon was killed, or the caller left
)

// lockedRand is a source of chance for several goroutines.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (l *lockedRand) below(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.IntN(n)
}

// soakNumber reads a number from the environment.
func soakNumber(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// TestSoak runs SOAK_CYCLES plain cycles, a fifth as many with faults and a tenth as
// many kills of the daemon at random moments. SOAK_SEED makes other choices;
// SOAK_REPORT is the file that gets the result.
func TestSoak(t *testing.T) {
	cycles := int(soakNumber(t, "SOAK_CYCLES", uint64(harness.Rounds(t, 60))))
	r := soakReport{cycles: cycles, seed: soakNumber(t, "SOAK_SEED", 1), began: time.Now()}
	t.Logf("SOAK_SEED=%d SOAK_CYCLES=%d", r.seed, cycles)
	t.Run("plain", func(t *testing.T) { r.plain(t, cycles) })
	t.Run("faults", func(t *testing.T) { r.faulted(t, max(cycles/5, len(soakFaults))) })
	t.Run("kills", func(t *testing.T) { r.kills(t, max(cycles/10, 5)) })
	if path := os.Getenv("SOAK_REPORT"); path != "" && !t.Failed() {
		r.write(t, path)
	}
}

func newSoak(t *testing.T, seed uint64) *soak {
	t.Helper()
	s := &soak{t: t, folders: harness.NewFolders(t), random: &lockedRand{r: rand.New(rand.NewPCG(seed, uint64(len(t.Name()))))},
		client:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}},
		requests: map[string]request{}}
	return s
}

// use makes d the daemon that requests go to.
func (s *soak) use(d *harness.Daemon) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.daemon = d
	s.daemons = append(s.daemons, d)
}

// disturb notes that something begins or ends that any request may feel.
func (s *soak) disturb() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disturbed++
}

// reply is what a caller got.
type reply struct {
	id    string
	fate  fate
	text  string
	upset bool // something that anybody may feel was going on
}

// ask makes one request for a tenant of its own, again under another id as long as it
// is refused.
func (s *soak) ask(payload any, limit time.Duration) reply {
	for {
		s.mu.Lock()
		before, d := s.disturbed, s.daemon
		s.mu.Unlock()
		r := s.send(d, payload, limit)
		s.mu.Lock()
		s.requests[r.id] = request{r.fate, d}
		r.upset = before%2 == 1 || s.disturbed != before
		s.mu.Unlock()
		if r.fate != refused {
			return r
		}
		time.Sleep(10 * time.Millisecond) // as a client does
	}
}

func (s *soak) send(d *harness.Daemon, payload any, limit time.Duration) reply {
	r := reply{id: uuid.NewString(), fate: lost}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.Addr+"/2015-03-31/functions/function/invocations",
		strings.NewReader(script.Encode(payload)))
	if err != nil {
		s.t.Error(err)
		return r
	}
	req.Header = http.Header{"X-Amzn-Requestid": {r.id}, "X-Amz-Tenant-Id": {r.id}}
	resp, err := s.client.Do(req)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			r.fate = refused
		}
		return r
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return r
	}
	r.text = string(text)
	switch {
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable:
		r.fate = refused
	case resp.StatusCode == http.StatusOK && resp.Header.Get("X-Amz-Function-Error") == "":
		r.fate = answered
	default:
		r.fate = failed
	}
	return r
}

// echo is a plain cycle: the payload comes back, unless something was going on.
func (s *soak) echo() {
	payload := uuid.NewString()
	r := s.ask(payload, harness.Patience)
	if r.fate == answered && r.text != script.Encode(payload) || r.fate != answered && !r.upset {
		s.t.Errorf("%s of %s: fate %d, answer %.300s", r.id, payload, r.fate, r.text)
	}
}

// wantFailure is a cycle in which the function fails of itself, with an error that has
// want in it.
func (s *soak) wantFailure(want string, steps ...script.Step) {
	r := s.ask(script.Event{Report: true, Steps: steps}, harness.Patience)
	if (r.fate != failed || !strings.Contains(r.text, want)) && !r.upset {
		s.t.Errorf("%s: fate %d, answer %.300s; want %s", r.id, r.fate, r.text, want)
	}
}

// work shares n calls of do among workers.
func work(workers, n int, do func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range workers {
		wg.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// ledger compares what callers saw with what the daemons logged: whatever was accepted
// has one START, END and REPORT, at most one in a daemon that was killed, and what
// was refused has none. It returns the number of requests by fate.
func (s *soak) ledger() (sum [lost + 1]int) {
	type lines struct{ start, end, report int }
	seen := map[string]*lines{}
	for _, d := range s.daemons {
		for line := range strings.Lines(d.Log.Text()) {
			kind, rest, ok := strings.Cut(strings.TrimSpace(line), " RequestId: ")
			if !ok || kind != "START" && kind != "END" && kind != "REPORT" {
				continue
			}
			id, _, _ := strings.Cut(strings.ReplaceAll(rest, "\t", " "), " ")
			if s.requests[id].daemon != d {
				s.t.Errorf("a record of nobody's request: %s", line)
			}
			if seen[id] == nil {
				seen[id] = &lines{}
			}
			switch kind {
			case "START":
				seen[id].start++
			case "END":
				seen[id].end++
			case "REPORT":
				seen[id].report++
			}
		}
	}
	for id, r := range s.requests {
		sum[r.fate]++
		got, whole := lines{}, lines{1, 1, 1}
		if seen[id] != nil {
			got = *seen[id]
		}
		var right bool
		switch {
		case r.fate == refused:
			right = got == lines{}
		case !r.daemon.Cmd.ProcessState.Exited(): // killed, with what it had not written
			right = got.start <= 1 && got.end <= 1 && got.report <= 1
		case r.fate == answered:
			right = got == whole
		default: // a sandbox that could not be made starts nothing
			right = got == whole || got == lines{}
		}
		if !right {
			s.t.Errorf("request %s of fate %d has the records %+v", id, r.fate, got)
		}
	}
	return sum
}

// size is the resident memory of a daemon's processes in KiB and their number of threads.
func sizeOf(d *harness.Daemon) (rss, threads int) {
	d.T.Helper()
	return int(d.Sum("VmRSS")), int(d.Sum("Threads"))
}
