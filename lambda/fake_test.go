package lambda

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/function"
)

// memStore is a Store in memory.
type memStore struct {
	mu   sync.Mutex
	rows map[string][]byte
	fail func() error // if not nil, called before each transaction
}

func newMemStore() *memStore { return &memStore{rows: map[string][]byte{}} }

func (m *memStore) Epoch() uint64 { return 7 }

func (m *memStore) View(ctx context.Context, f func(Reader) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing(ctx); err != nil {
		return err
	}
	return f(memTx{m.rows})
}

func (m *memStore) Update(ctx context.Context, f func(Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing(ctx); err != nil {
		return err
	}
	changed := maps.Clone(m.rows)
	if err := f(memTx{maps.Clone(m.rows)}); err != nil { // a transaction may run twice
		return err
	}
	if err := f(memTx{changed}); err != nil {
		return err
	}
	m.rows = changed
	return nil
}

func (m *memStore) failing(ctx context.Context) error {
	if m.fail != nil {
		if err := m.fail(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// copy returns a store with the same rows.
func (m *memStore) copy() *memStore {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memStore{rows: maps.Clone(m.rows)}
}

// keys returns the keys with a prefix.
func (m *memStore) keys(prefix string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	entries, _ := memTx{m.rows}.List(prefix, "", 1<<30)
	keys := []string{}
	for _, e := range entries {
		keys = append(keys, e.Key)
	}
	return keys
}

type memTx struct{ rows map[string][]byte }

func (t memTx) Get(key string) ([]byte, error)     { return t.rows[key], nil }
func (t memTx) Put(key string, value []byte) error { t.rows[key] = value; return nil }
func (t memTx) Delete(key string) error            { delete(t.rows, key); return nil }
func (t memTx) List(prefix, after string, limit int) ([]Entry, error) {
	var entries []Entry
	for _, k := range slices.Sorted(maps.Keys(t.rows)) {
		if strings.HasPrefix(k, prefix) && k > after && len(entries) < limit {
			entries = append(entries, Entry{k, t.rows[k]})
		}
	}
	return entries, nil
}

// memBlobs are Blobs in memory.
type memBlobs struct {
	mu    sync.Mutex
	blobs map[[32]byte][]byte
	pins  int // blobs that were not released
}

func (m *memBlobs) Put(_ context.Context, r io.Reader) (Blob, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return Blob{}, fmt.Errorf("store the code: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	digest := sha256.Sum256(b)
	m.blobs[digest] = b
	m.pins++
	return Blob{digest, int64(len(b)), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.pins--
	}}, nil
}

func (m *memBlobs) Open(_ context.Context, digest [32]byte) (io.ReadCloser, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[digest]
	if !ok {
		return nil, 0, errors.New("no such blob")
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

// fakeDeployer remembers what it was asked for. What its functions return, if they are not nil,
// is its answer.
type fakeDeployer struct {
	mu       sync.Mutex
	revs     map[uint64]Revision
	switches map[string]uint64
	gone     map[string]bool
	released []uint64

	onRegister func(ctx context.Context, r Revision) error
	onSwitch   func(ctx context.Context, name string, number uint64) error
}

func newFakeDeployer() *fakeDeployer {
	return &fakeDeployer{revs: map[uint64]Revision{}, switches: map[string]uint64{}, gone: map[string]bool{}}
}

func (d *fakeDeployer) Register(ctx context.Context, r Revision) error {
	if d.onRegister != nil {
		if err := d.onRegister(ctx, r); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old, ok := d.revs[r.ID.Number]; ok && fmt.Sprint(old) != fmt.Sprint(r) {
		return fmt.Errorf("revision %d has other content now", r.ID.Number)
	}
	d.revs[r.ID.Number] = r
	return nil
}

func (d *fakeDeployer) Switch(ctx context.Context, name string, number uint64, gone bool) error {
	if d.onSwitch != nil {
		if err := d.onSwitch(ctx, name, number); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.switches[name], d.gone[name] = max(d.switches[name], number), gone
	return nil
}

func (d *fakeDeployer) Release(_ context.Context, id function.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.released = append(d.released, id.Number)
}

// xorSealer is no encryption, but shows what was not opened.
type xorSealer struct{}

func (xorSealer) Seal(context string, plain []byte) ([]byte, error) {
	return append([]byte(context+"\x00"), flip(plain)...), nil
}

func (xorSealer) Open(context string, sealed []byte) ([]byte, error) {
	got, plain, ok := bytes.Cut(sealed, []byte{0})
	if !ok || string(got) != context {
		return nil, errors.New("sealed for something else")
	}
	return flip(plain), nil
}

func flip(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i] ^ 0x55
	}
	return out
}

const (
	testRegion  = "eu-west-1"
	testAccount = "111111111111"
	testRole    = "arn:aws:iam::111111111111:role/r"
)

// fixture is a service with what it uses.
type fixture struct {
	*Service
	t        testing.TB
	store    *memStore
	blobs    *memBlobs
	deployer *fakeDeployer
	cancel   context.CancelFunc
	faults   chan error
	calls    chan Call
}

// newFixture starts a service. change, if not nil, changes its configuration.
func newFixture(t testing.TB, change func(*Config, *fixture)) *fixture {
	t.Helper()
	f := &fixture{t: t, store: newMemStore(), blobs: &memBlobs{blobs: map[[32]byte][]byte{}}, deployer: newFakeDeployer(),
		faults: make(chan error, 1000), calls: make(chan Call, 100_000)}
	f.start(change)
	return f
}

func (f *fixture) start(change func(*Config, *fixture)) {
	f.t.Helper()
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(context.Background())
	f.t.Cleanup(f.cancel)
	cfg := Config{
		Store: f.store, Blobs: f.blobs, Deployer: f.deployer, Sealer: xorSealer{},
		Region: testRegion, AccountID: testAccount, Architecture: "x86_64",
		Runtimes: append([]string{}, runtimes...), Networks: []string{"lan", "web"},
		OnError: func(err error) { f.faults <- err },
		Audit:   func(c Call) { f.calls <- c },
		Limits:  Limits{Rate: 1e9, Burst: 1e9},
	}
	if change != nil {
		change(&cfg, f)
	}
	s, err := New(ctx, cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.Service = s
}

// answer is what a client gets.
type answer struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

// send sends a request. A body that is not a string is sent as JSON.
func (f *fixture) send(method, target string, body any) answer {
	f.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case io.Reader:
		r = b
	default:
		j, err := json.Marshal(body)
		if err != nil {
			f.t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	return f.do(httptest.NewRequest(method, target, r))
}

func (f *fixture) do(r *http.Request) answer {
	f.t.Helper()
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	a := answer{status: w.Code, header: w.Header(), raw: w.Body.String()}
	if w.Body.Len() > 0 && w.Header().Get("Content-Type") == "application/json" {
		if err := json.Unmarshal(w.Body.Bytes(), &a.body); err != nil {
			f.t.Errorf("%s %s: %d %q is not JSON: %v", r.Method, r.URL, w.Code, w.Body, err)
		}
	}
	return a
}

// text returns the message of an error.
func (a answer) text() string {
	for _, name := range []string{"message", "Message"} {
		if s, ok := a.body[name].(string); ok {
			return s
		}
	}
	return ""
}

func (a answer) errorType() string { return a.header.Get("X-Amzn-Errortype") }

type j map[string]any

// newFunction is a request that creates a function.
func newFunction(name string) j {
	return j{"FunctionName": name, "Runtime": "python3.12", "Handler": "index.handler", "Role": testRole, "Code": j{"ZipFile": []byte("zip of " + name)}}
}

// create creates a function and waits until it is active.
func (f *fixture) create(request j) map[string]any {
	f.t.Helper()
	a := f.send("POST", "/2015-03-31/functions", request)
	if a.status != http.StatusCreated {
		f.t.Fatalf("create: %d %s", a.status, a.raw)
	}
	name, _ := a.body["FunctionName"].(string)
	f.settled(name)
	return a.body
}

// settled waits until no change of a function is under way.
func (f *fixture) settled(name string) {
	f.t.Helper()
	f.rollout.mu.Lock()
	w := f.rollout.running[name]
	f.rollout.mu.Unlock()
	if w == nil {
		return
	}
	select {
	case <-w.done:
	case <-time.After(10 * time.Second):
		f.t.Fatalf("the update of %s does not end", name)
	}
}

func (f *fixture) get(name string) map[string]any {
	f.t.Helper()
	a := f.send("GET", "/2015-03-31/functions/"+name+"/configuration", nil)
	if a.status != http.StatusOK {
		f.t.Fatalf("get %s: %d %s", name, a.status, a.raw)
	}
	return a.body
}

// readZip is what root makes of code: of some it says that it is no zip, or too large.
func (f *fixture) readZip(ctx context.Context, r Revision) error {
	content, _, err := f.blobs.Open(ctx, r.Code)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(content)
	switch string(b) {
	case "not a zip":
		return fmt.Errorf("register: %w", &CodeError{Fault: NotAZip, Detail: "no end of central directory"})
	case "large":
		return fmt.Errorf("register: %w", &CodeError{Fault: TooLarge, Detail: "300 MB"})
	}
	return err
}
