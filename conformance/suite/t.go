package suite

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// T is what a case works with. Only the goroutine of the case may call Fatalf and what
// may fail fatally, which is all but Errorf.
type T struct {
	ctx         context.Context
	env         *environment
	mu          sync.Mutex
	wrong       []string
	unsupported string
}

func newT(ctx context.Context, e *environment) *T { return &T{ctx: ctx, env: e} }

// Errorf says that something is wrong. The case goes on.
func (t *T) Errorf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wrong = append(t.wrong, fmt.Sprintf(format, args...))
}

// seen returns what is wrong so far. An invocation in the background of a case that has ended
// may still find something.
func (t *T) seen() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.wrong)
}

// Fatalf says that something is wrong, and ends the case.
func (t *T) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

// Unsupported says that the target has not got what the case checks, and ends the case.
func (t *T) Unsupported(format string, args ...any) {
	t.unsupported = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// Scaled is an upper bound d for this machine: longer when it is slow.
func (t *T) Scaled(d time.Duration) time.Duration { return time.Duration(float64(d) * t.env.factor) }

// Timeout is that of the function.
func (t *T) Timeout() time.Duration { return t.env.setup.timeout() }

// instance is the environment of the case, started if it is not there.
func (t *T) instance() Instance {
	if t.env.instance == nil {
		i, err := t.env.target.Start(t.ctx, t.env.setup)
		if err != nil {
			t.Fatalf("%v", err)
		}
		t.env.instance = i
	}
	return t.env.instance
}

// Restart gives the case an environment that nobody has used.
func (t *T) Restart() {
	t.Stop()
	t.instance()
}

// Stop ends the environment in order, and returns everything that was printed.
func (t *T) Stop() string {
	if t.env.instance == nil {
		return ""
	}
	i := t.env.instance
	if err := t.env.stop(); err != nil {
		t.Errorf("%v", err)
	}
	return i.Log()
}

// Log is everything that the target has printed.
func (t *T) Log() string { return t.instance().Log() }

// WaitLog wants a line with text in it in what the target prints.
func (t *T) WaitLog(text string) {
	if !t.instance().WaitLog(text, t.env.patience) {
		t.Fatalf("the target did not print %q", text)
	}
}

// WaitLogMatch is WaitLog for a regular expression. A target may print the log of an
// invocation after its answer.
func (t *T) WaitLogMatch(pattern string) {
	line := regexp.MustCompile(pattern)
	if !t.Until(func() bool { return line.MatchString(t.Log()) }) {
		t.Fatalf("the target did not print %s, but %s", pattern, Short([]byte(t.Log())))
	}
}

// Answer is what the invoke endpoint said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Took   time.Duration
}

// ID is the request id that the caller was told.
func (a *Answer) ID() string { return a.Header.Get("X-Amzn-Requestid") }

// Tail is the log that came with the answer.
func (a *Answer) Tail() string {
	text, err := base64.StdEncoding.DecodeString(a.Header.Get("X-Amz-Log-Result"))
	if err != nil {
		return ""
	}
	return string(text)
}

// mostBytes is how much of an answer is read. A buffered one has 6 MB at most (RT-34), and
// no case has more streamed than a few times that.
const mostBytes = 64 << 20

// InvokePath is where functions are invoked (INV-01).
const InvokePath = "/2015-03-31/functions/function/invocations"

// Request makes any request to the endpoint. Header has names and values in turn.
func (t *T) Request(method, path string, body []byte, header ...string) *Answer {
	a, err := t.try(method, path, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// limited is the context of one invocation: it ends when the function's time and the
// suite's patience are over, so that a target that does not answer ends the case.
func (t *T) limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.ctx, t.Timeout()+t.env.patience)
}

func (t *T) try(method, path string, body []byte, header ...string) (*Answer, error) {
	ctx, cancel := t.limited()
	defer cancel()
	return send(ctx, http.DefaultClient, method, t.instance().URL()+path, body, header)
}

// frontClient shows responses as they are sent.
var frontClient = &http.Client{
	Transport:     &http.Transport{DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Front makes a request to the URL of the function; the setup must ask for one.
func (t *T) Front(method, path string, body []byte, header ...string) *Answer {
	i, ok := t.instance().(Fronted)
	if !ok {
		t.Unsupported("the target has no %s", URLs)
	}
	ctx, cancel := t.limited()
	defer cancel()
	a, err := send(ctx, frontClient, method, i.FrontURL()+path, body, header)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// send sends a request and reads the answer. A header that comes more than once has all of
// its values.
func send(ctx context.Context, client *http.Client, method, url string, body []byte, header []string) (*Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		name := http.CanonicalHeaderKey(header[i])
		req.Header[name] = append(req.Header[name], header[i+1])
	}
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, mostBytes+1))
	if err == nil && len(text) > mostBytes {
		err = fmt.Errorf("the answer has more than %d bytes", mostBytes)
	}
	return &Answer{resp.StatusCode, resp.Header, text, time.Since(began)}, err
}

// Invoke invokes the function with a payload.
func (t *T) Invoke(payload string, header ...string) *Answer {
	return t.Request(http.MethodPost, InvokePath, []byte(payload), header...)
}

// Background invokes the function on a goroutine. The channel gives the answer, and nil
// after an error, which is noted.
func (t *T) Background(payload string, header ...string) <-chan *Answer {
	t.instance() // on the goroutine of the case
	answers := make(chan *Answer, 1)
	go func() {
		a, err := t.try(http.MethodPost, InvokePath, []byte(payload), header...)
		if err != nil {
			t.Errorf("invoke: %v", err)
			a = nil
		}
		answers <- a
	}()
	return answers
}

// Event makes the payload of a play with a name of its own.
func (t *T) Event(answered bool, steps ...script.Step) (payload, play string) {
	t.env.plays++
	play = fmt.Sprintf("play-%d", t.env.plays)
	return script.Encode(script.Event{Play: play, Steps: steps, Answered: answered}), play
}

// Play lets the runtime do steps in an invocation, which the actor then answers, and
// returns the answer and what the journal has of it.
func (t *T) Play(steps ...script.Step) (*Answer, script.Entries) {
	payload, play := t.Event(false, steps...)
	a := t.Invoke(payload)
	return a, t.Journal().Of(play)
}

// PlayAnswered is Play for steps that answer themselves.
func (t *T) PlayAnswered(steps ...script.Step) (*Answer, script.Entries) {
	payload, play := t.Event(true, steps...)
	a := t.Invoke(payload)
	return a, t.Journal().Of(play)
}

// Journal asks the environment for what all its actors have noted.
func (t *T) Journal() script.Entries {
	a := t.patiently(script.Encode(script.Event{Journal: true}))
	var list script.Entries
	if err := json.Unmarshal(a.Body, &list); err != nil {
		t.Fatalf("the journal cannot be read: status %d, function error %q, %s", a.Status, a.Header.Get("X-Amz-Function-Error"), Short(a.Body))
	}
	return list
}

// Quiet waits until the environment is free: when it returns, nothing is under way.
func (t *T) Quiet() { t.patiently(`"quiet"`, "X-Amz-Log-Type", "Tail") } // the tail comes at the very end

// patiently invokes the function again as long as the answer is 429, as SDKs do.
func (t *T) patiently(payload string, header ...string) *Answer {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(t.env.patience); ; <-again.C {
		a := t.Invoke(payload, header...)
		if a.Status != http.StatusTooManyRequests || time.Now().After(deadline) {
			return a
		}
	}
}

// First returns the first entry with a name; it is fatal if there is none.
func (t *T) First(l script.Entries, name string) script.Entry {
	found := l.Named(name)
	if len(found) == 0 {
		t.Fatalf("no entry %q in the journal", name)
	}
	return found[0]
}

// Until calls check again and again until it reports true, or for as long as the suite is
// patient, and reports what check said last.
func (t *T) Until(check func() bool) bool {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(t.env.patience); ; <-again.C {
		if check() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// One returns the only entry with a name; anything but one is fatal.
func (t *T) One(l script.Entries, name string) script.Entry {
	found := l.Named(name)
	if len(found) != 1 {
		t.Fatalf("%d entries %q in the journal, want 1", len(found), name)
	}
	return found[0]
}

// Status wants a step to have been answered with a status, and with an error type or
// other text in the body.
func (t *T) Status(l script.Entries, name string, status int, texts ...string) script.Entry {
	e := t.One(l, name)
	if e.Error != "" && e.Status == 0 {
		t.Errorf("%s: %s; want status %d", name, e.Error, status)
		return e
	}
	if e.Status != status {
		t.Errorf("%s: status %d %s; want %d", name, e.Status, Short([]byte(e.Text)), status)
	}
	for _, text := range texts {
		if !strings.Contains(e.Text, text) {
			t.Errorf("%s: body %s; want %q in it", name, Short([]byte(e.Text)), text)
		}
	}
	return e
}

// Equal wants two values to be the same.
func Equal[V comparable](t *T, what string, got, want V) {
	if got != want {
		t.Errorf("%s is %s, want %s", what, Short(fmt.Append(nil, got)), Short(fmt.Append(nil, want)))
	}
}

// Contains wants a text to have a part.
func (t *T) Contains(what, text, part string) {
	if !strings.Contains(text, part) {
		t.Errorf("%s: %s lacks %q", what, Short([]byte(text)), part)
	}
}

// FunctionError wants an answer to be a function error (INV-10) of a type, with a
// message in which <id> stands for the request id. An empty message fits any.
func (t *T) FunctionError(a *Answer, kind, message string) {
	var got struct{ ErrorType, ErrorMessage string }
	if err := json.Unmarshal(a.Body, &got); err != nil {
		t.Errorf("error body %s: %v", Short(a.Body), err)
	}
	if a.Status != http.StatusOK || a.Header.Get("X-Amz-Function-Error") != "Unhandled" {
		t.Errorf("status %d, X-Amz-Function-Error %q; want 200, Unhandled", a.Status, a.Header.Get("X-Amz-Function-Error"))
	}
	if kind != "" && got.ErrorType != kind {
		t.Errorf("errorType %q (%s), want %q", got.ErrorType, Short(a.Body), kind)
	}
	if message = strings.ReplaceAll(message, "<id>", a.ID()); message != "" && got.ErrorMessage != message {
		t.Errorf("errorMessage %q, want %q", got.ErrorMessage, message)
	}
}

// Short is text that fits on a line.
func Short(b []byte) string {
	const most = 300
	if len(b) > most {
		return fmt.Sprintf("%q… (%d bytes)", b[:most], len(b))
	}
	return fmt.Sprintf("%q", b)
}

// Trailer invokes the function and returns the trailers of the answer.
func (t *T) Trailer(payload string) http.Header {
	ctx, cancel := t.limited()
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.instance().URL()+InvokePath, strings.NewReader(payload))
	if err != nil {
		t.Fatalf("invoke: %v", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("invoke: %v", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatalf("invoke: %v", err)
	}
	return resp.Trailer
}
