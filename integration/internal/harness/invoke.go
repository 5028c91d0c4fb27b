package harness

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// Answer is what the invoke endpoint said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Took   time.Duration
}

// Request invokes the function and returns whatever is answered.
func (d *Daemon) Request(payload any, header ...string) (Answer, error) {
	body, ok := payload.([]byte)
	if !ok {
		body = []byte(script.Encode(payload))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.Addr+"/2015-03-31/functions/function/invocations", bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	begin := time.Now()
	resp, err := d.Folders.Host.client().Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, text, time.Since(begin)}, err
}

// Invoke is request for answers of status 200.
func (d *Daemon) Invoke(payload any, header ...string) Answer {
	d.T.Helper()
	a, err := d.Request(payload, header...)
	if err != nil {
		d.T.Fatalf("invoke: %v", err)
	}
	if a.Status != http.StatusOK {
		d.T.Fatalf("invoke: status %d: %s", a.Status, a.Body)
	}
	return a
}

// Do lets the runtime do steps, and returns its report.
func (d *Daemon) Do(steps ...script.Step) script.Report {
	d.T.Helper()
	return d.Report(d.Invoke(script.Event{Report: true, Steps: steps}))
}

// Report is the runtime's report in an answer that must not be an error.
func (d *Daemon) Report(a Answer) script.Report {
	d.T.Helper()
	if kind := a.Header.Get("X-Amz-Function-Error"); kind != "" {
		d.T.Fatalf("function error %s: %s", kind, a.Body)
	}
	var r script.Report
	if err := json.Unmarshal(a.Body, &r); err != nil {
		d.T.Fatalf("report %q: %v", a.Body, err)
	}
	return r
}

// Journal is the journal of the sandbox, which its runtime reads out.
func (d *Daemon) Journal() script.Entries {
	d.T.Helper()
	a := d.Invoke(script.Event{Journal: true})
	var list script.Entries
	if err := json.Unmarshal(a.Body, &list); err != nil {
		d.T.Fatalf("journal %.1000q: %v", a.Body, err)
	}
	return list
}

// Printed are the entries that who printed, with the name given.
func (d *Daemon) Printed(who, name string) script.Entries {
	return script.Printed(d.Log.Text(), who, name)
}

// WithTail are the header lines that ask for the end of the log. The answer then
// comes at Done, with the REPORT line, and not as soon as it is complete.
var WithTail = []string{"X-Amz-Log-Type", "Tail"}

// ID is the request id of the answer.
func (a Answer) ID() string { return a.Header.Get("X-Amzn-RequestId") }

// Tail is the end of the invocation's log.
func (a Answer) Tail(t *testing.T) string {
	t.Helper()
	text, err := base64.StdEncoding.DecodeString(a.Header.Get("X-Amz-Log-Result"))
	if err != nil || len(text) == 0 {
		t.Fatalf("X-Amz-Log-Result %q: %v", a.Header.Get("X-Amz-Log-Result"), err)
	}
	return string(text)
}

// WantError checks that the answer is the function error of the type and message
// given; <id> in the message stands for the request id.
func (a Answer) WantError(t *testing.T, kind, message string) {
	t.Helper()
	message = strings.ReplaceAll(message, "<id>", a.ID())
	var got struct{ ErrorType, ErrorMessage string }
	if err := json.Unmarshal(a.Body, &got); err != nil {
		t.Fatalf("error body %q: %v", a.Body, err)
	}
	if a.Status != http.StatusOK || a.Header.Get("X-Amz-Function-Error") != "Unhandled" {
		t.Errorf("status %d, X-Amz-Function-Error %q; want 200, Unhandled (INV-10)", a.Status, a.Header.Get("X-Amz-Function-Error"))
	}
	if got.ErrorType != kind || got.ErrorMessage != message {
		t.Errorf("error %s %q; want %s %q", got.ErrorType, got.ErrorMessage, kind, message)
	}
}

// ReportLine is the REPORT line of an invocation (LOG-23).
type ReportLine struct {
	Duration, InitDuration float64 // ms; 0 if absent
	MemorySize, MaxMemory  int     // MB
	ErrorType              string  // "" if absent
	status                 string
}

var reportPattern = regexp.MustCompile(`REPORT RequestId: (\S+)\tDuration: ([\d.]+) ms\tBilled Duration: \d+ ms\tMemory Size: (\d+) MB\tMax Memory Used: (\d+) MB\t` +
	`(?:Init Duration: ([\d.]+) ms\t)?(?:Status: (\w+)\t)?(?:Error Type: (\S+)\t)?`)

// ParseReport finds the REPORT line of invocation id in a log.
func ParseReport(log, id string) (ReportLine, error) {
	for _, m := range reportPattern.FindAllStringSubmatch(strings.ReplaceAll(log, `\t`, "\t"), -1) {
		if m[1] != id {
			continue
		}
		var r ReportLine
		fmt.Sscan(m[2], &r.Duration)
		fmt.Sscan(m[3], &r.MemorySize)
		fmt.Sscan(m[4], &r.MaxMemory)
		fmt.Sscan(m[5], &r.InitDuration)
		r.status, r.ErrorType = m[6], m[7]
		return r, nil
	}
	return ReportLine{}, fmt.Errorf("no REPORT line of %s in %q", id, log)
}

// ReportOf waits for the REPORT line of an invocation in the daemon's log.
func (d *Daemon) ReportOf(id string) ReportLine {
	d.T.Helper()
	line, ok := d.Log.Wait(Patience, func(line string) bool { return strings.Contains(line, "REPORT RequestId: "+id) })
	if !ok {
		d.T.Fatalf("no REPORT line of %s", id)
	}
	r, err := ParseReport(line, id)
	if err != nil {
		d.T.Fatal(err)
	}
	return r
}

// WaitFor waits for a line that contains text.
func (d *Daemon) WaitFor(text string) string {
	d.T.Helper()
	line, ok := d.Log.Wait(Patience, func(line string) bool { return strings.Contains(line, text) })
	if !ok {
		d.T.Fatalf("no %q in the log", text)
	}
	return line
}

// AskTenant invokes for a tenant, whose sandbox is its own.
func (d *Daemon) AskTenant(tenant string, payload any) (Answer, error) {
	return d.Request(payload, "X-Amz-Tenant-Id", tenant)
}

// InvokeLater invokes without waiting for the answer.
func (d *Daemon) InvokeLater(payload any) <-chan Answer {
	answers := make(chan Answer, 1)
	go func() {
		a, err := d.Request(payload)
		if err != nil {
			d.T.Errorf("invoke: %v", err)
		}
		answers <- a
	}()
	return answers
}

// WaitPrinted waits for the nth entry that who prints with the name given.
func (d *Daemon) WaitPrinted(who, name string, n int) {
	d.T.Helper()
	Eventually(d.T, Patience, func() string {
		if got := len(d.Printed(who, name)); got < n {
			return fmt.Sprintf("%d entries %s of %s, want %d", got, name, who, n)
		}
		return ""
	})
}

// InvokeMany makes n invocations, up to parallel at once, and wants every payload
// back at its own caller, each under an id of its own.
func (d *Daemon) InvokeMany(n, parallel int) {
	d.T.Helper()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		ids  = make(map[string]bool)
		next = make(chan int)
	)
	for range parallel {
		wg.Go(func() {
			for i := range next {
				payload := fmt.Sprintf("payload %d", i)
				a, err := d.Request(payload)
				if err != nil || a.Status != http.StatusOK || string(a.Body) != script.Encode(payload) {
					d.T.Errorf("invocation %d: %v, status %d, %s", i, err, a.Status, a.Body)
				}
				mu.Lock()
				if ids[a.ID()] {
					d.T.Errorf("request id %s twice", a.ID())
				}
				ids[a.ID()] = true
				mu.Unlock()
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// ShellAnswer is what the function of [ShellBootstrap] answers.
type ShellAnswer struct {
	Event              string
	ID                 string
	PID                int
	Received, Deadline int64 // ms
	Kept               bool
}

// Shell invokes the function of [ShellBootstrap] with an event. The first result is empty if
// the function fails.
func (d *Daemon) Shell(event string) (ShellAnswer, Answer) {
	d.T.Helper()
	a := d.Invoke(event)
	var s ShellAnswer
	if a.Header.Get("X-Amz-Function-Error") == "" {
		if err := json.Unmarshal(a.Body, &s); err != nil {
			d.T.Fatalf("answer %q: %v", a.Body, err)
		}
	}
	return s, a
}
