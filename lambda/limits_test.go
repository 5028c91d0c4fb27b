package lambda

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimitOfFunctions(t *testing.T) {
	f := newFixture(t, func(c *Config, _ *fixture) { c.Limits.Functions = 2 })
	f.create(newFunction("a"))
	f.create(newFunction("b"))
	if a := f.send("POST", functions, newFunction("c")); a.status != 400 || a.errorType() != wrongValue || !strings.Contains(a.text(), "2 functions") {
		t.Errorf("%d %s", a.status, a.raw)
	}
	f.send("DELETE", named("a", "", ""), nil)
	f.create(newFunction("c"))
}

func TestLimitOfCode(t *testing.T) {
	f := newFixture(t, func(c *Config, _ *fixture) { c.Limits.CodeBytes = 20 })
	f.create(newFunction("a")) // 8 bytes each
	f.create(newFunction("b"))
	full := func(a answer) {
		t.Helper()
		if a.status != 400 || a.errorType() != "CodeStorageExceededException" || a.text() != "Code storage limit exceeded." {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
	full(f.send("POST", functions, newFunction("c")))
	full(f.send("PUT", named("a", "/code", ""), j{"ZipFile": []byte("more than fits")}))
	// An update without new code needs no room, one with as much code needs it until it is done.
	if a := f.send("PUT", named("a", "/configuration", ""), j{"Timeout": 7}); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	f.settled("a")
	if a := f.send("PUT", named("a", "/code", ""), j{"ZipFile": []byte("four")}); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	f.settled("a")
	f.create(newFunction("c"))
	if functions, bytes, err := f.Usage(t.Context()); functions != 3 || bytes != 20 || err != nil {
		t.Errorf("%d functions, %d bytes, %v", functions, bytes, err)
	}
	f.send("DELETE", named("a", "", ""), nil)
	f.send("DELETE", named("b", "", ""), nil)
	f.send("DELETE", named("c", "", ""), nil)
	var u usage
	if _, err := get(memTx{f.store.rows}, usageKey, &u); err != nil || u != (usage{}) {
		t.Errorf("usage %+v, %v", u, err)
	}
}

func TestLimitOfZip(t *testing.T) {
	f := newFixture(t, nil)
	endless := func(name string, zip int64) io.Reader {
		n := zip / 3 * 4
		return io.MultiReader(strings.NewReader(`{"FunctionName":"`+name+`","Code":{"ZipFile":"`),
			io.LimitReader(repeat{'A'}, n), strings.NewReader(`"},"Role":"`+testRole+`","Runtime":"python3.12","Handler":"h"}`))
	}
	if a := f.send("POST", functions, endless("f", 50<<20)); a.status != 201 || a.body["CodeSize"] != float64(50<<20/3*3) {
		t.Errorf("%d %s", a.status, a.raw)
	}
	a := f.send("POST", functions, endless("g", 50<<20+3))
	if a.status != 413 || a.errorType() != "RequestEntityTooLargeException" || a.text() != "Zipped size must be smaller than 52428800 bytes" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	f.shaped(a)
	// A client that has more to send gets the answer, too: the request is read to its end.
	rest := endless("g", 60<<20)
	if a := f.send("POST", functions, rest); a.status != 413 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if n, _ := rest.Read(make([]byte, 1)); n > 0 {
		t.Error("the rest of the request was not read")
	}
}

type repeat struct{ c byte }

func (r repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.c
	}
	return len(p), nil
}

func TestLimitOfRequest(t *testing.T) {
	f := newFixture(t, nil)
	const zip = 69_900_000 // characters of base64, a little less than the most
	request := httptest.NewRequest("POST", functions, io.MultiReader(strings.NewReader(`{"Code":{"ZipFile":"`), io.LimitReader(repeat{'A'}, zip),
		strings.NewReader(`"},"Environment":{"Variables":{"A":"`), io.LimitReader(repeat{'x'}, 2<<20), strings.NewReader(`"}}}`)))
	request.ContentLength = maxRequest + 1
	if a := f.do(request); a.status != 413 || a.text() != "Request must be smaller than 70167211 bytes for the CreateFunction operation" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	a := f.send("POST", functions, `{"Description":"`+strings.Repeat("x", maxKept)+`"}`)
	if a.status != 413 || a.text() != "Request without the code must be smaller than 1048576 bytes for the CreateFunction operation" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	// The size of the request is not believed.
	a = f.send("PUT", named("f", "/configuration", ""), io.LimitReader(repeat{' '}, maxRequest+1))
	if a.status != 413 || a.text() != "Request must be smaller than 70167211 bytes for the UpdateFunctionConfiguration operation" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

func TestLimitOfUploads(t *testing.T) {
	f := newFixture(t, nil)
	f.uploads = newGate(2, 0)
	leave, _ := f.uploads.enter(context.Background())
	other, _ := f.uploads.enter(context.Background())
	a := f.send("POST", functions, newFunction("f"))
	if a.status != 429 || a.errorType() != "TooManyRequestsException" || a.body["Reason"] != "CallerRateLimitExceeded" || a.header.Get("Retry-After") != "1" {
		t.Errorf("%d %v %s", a.status, a.header, a.raw)
	}
	f.shaped(a)
	if a := f.send("GET", functions, nil); a.status != 200 { // what is no upload goes on
		t.Errorf("%d %s", a.status, a.raw)
	}
	leave()
	f.create(newFunction("f"))
	other()
	if n := len(f.uploads.queue) + len(f.uploads.places); n != 0 {
		t.Errorf("%d uploads are under way", n)
	}
}

// Uploads wait for others, but not when their client is gone, and only so many.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 2)
		leave, err := g.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan error, 2)
		for _, ctx := range []context.Context{ctx, t.Context()} {
			go func() {
				leave, err := g.enter(ctx)
				if err == nil {
					leave()
				}
				results <- err
			}()
		}
		synctest.Wait()
		if _, err := g.enter(t.Context()); err == nil {
			t.Error("more wait than may")
		}
		cancel()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		leave()
		if err := <-results; err != nil {
			t.Error(err)
		}
		if n := len(g.queue) + len(g.places); n != 0 {
			t.Errorf("%d uploads are under way", n)
		}
	})
}

func TestRate(t *testing.T) {
	now := time.Unix(1000, 0)
	var mu sync.Mutex
	f := newFixture(t, func(c *Config, _ *fixture) {
		c.Limits.Rate, c.Limits.Burst = 2, 3
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
		c.Authenticate = func(r *http.Request) (Caller, error) { return Caller{Key: r.Header.Get("Key")}, nil }
	})
	get := func(key string) answer {
		r := httptest.NewRequest("GET", functions, nil)
		r.Header.Set("Key", key)
		return f.do(r)
	}
	for i, want := range []int{200, 200, 200, 429} {
		if a := get("a"); a.status != want {
			t.Errorf("request %d: %d %s, want %d", i, a.status, a.raw, want)
		} else if want == 429 && (a.header.Get("Retry-After") != "1" || a.text() != "Rate exceeded") {
			t.Errorf("%v %s", a.header, a.raw)
		}
	}
	if a := get("b"); a.status != 200 {
		t.Errorf("another key: %d", a.status)
	}
	mu.Lock()
	now = now.Add(time.Second)
	mu.Unlock()
	for i, want := range []int{200, 200, 429} {
		if a := get("a"); a.status != want {
			t.Errorf("a second later, request %d: %d, want %d", i, a.status, want)
		}
	}
	for i := range 2 * maxRated {
		get(fmt.Sprint(i))
		if i%100 == 0 {
			mu.Lock()
			now = now.Add(time.Second)
			mu.Unlock()
		}
	}
	if n := len(f.rates.keys); n > maxRated+200 {
		t.Errorf("%d keys are remembered", n)
	}
}

// With little room on the disk changes are refused, and reads and deletions go on.
func TestRoom(t *testing.T) {
	full := false
	f := newFixture(t, func(c *Config, _ *fixture) {
		c.Room = func() error {
			if full {
				return errors.New("the disk of --state-dir has 1 GiB free; free space there")
			}
			return nil
		}
	})
	f.create(newFunction("f"))
	full = true
	for _, a := range []answer{
		f.send("POST", functions, newFunction("g")),
		f.send("PUT", named("f", "/code", ""), j{"ZipFile": []byte("x")}),
		f.send("PUT", named("f", "/configuration", ""), j{"Timeout": 4}),
	} {
		if a.status != 503 || a.errorType() != "ServiceException" || !strings.Contains(a.text(), "--state-dir") || a.header.Get("Retry-After") == "" {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
	f.get("f")
	if a := f.send("GET", functions, nil); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if a := f.send("DELETE", named("f", "", ""), nil); a.status != 204 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

// A body that turns out not to be what was signed changes nothing.
func TestUnsignedBody(t *testing.T) {
	bad := &Error{Status: 403, Type: "InvalidSignatureException", Message: "the body is not what was signed"}
	f := newFixture(t, func(c *Config, _ *fixture) {
		c.Authenticate = func(r *http.Request) (Caller, error) {
			r.Body = io.NopCloser(io.MultiReader(r.Body, failingReader{bad}))
			return Caller{}, nil
		}
	})
	for _, c := range []negative{{method: "POST", target: functions, body: newFunction("f")}, {method: "GET", target: functions}, {method: "DELETE", target: named("f", "", "")}} {
		if a := f.send(c.method, c.target, c.body); a.status != 403 || a.errorType() != bad.Type {
			t.Errorf("%s: %d %s", c.method, a.status, a.raw)
		}
	}
	if rows := f.store.keys(""); len(rows) > 0 || f.blobs.pins != 0 {
		t.Errorf("rows %v, %d blobs held", rows, f.blobs.pins)
	}
}

// Who has not signed what it sends learns nothing of how it was read, and costs no key its rate.
func TestUnsignedTellsNothing(t *testing.T) {
	bad := &Error{Status: 403, Type: "InvalidSignatureException", Message: "no"}
	f := newFixture(t, func(c *Config, _ *fixture) {
		c.Limits.Rate, c.Limits.Burst = 1, 1
		c.Authenticate = func(r *http.Request) (Caller, error) {
			if r.Header.Get("Good") == "" {
				r.Body = io.NopCloser(io.MultiReader(r.Body, failingReader{bad}))
			}
			return Caller{Key: "AKID"}, nil
		}
	})
	for _, body := range []string{"{", `{"FunctionName":7}`, `{"Code":{"ZipFile":"!"}}`, `{}`, `{"Description":"` + strings.Repeat("x", maxKept) + `"}`} {
		if a := f.send("POST", functions, body); a.status != 403 || a.errorType() != bad.Type {
			t.Errorf("%.50s: %d %s", body, a.status, a.raw)
		}
	}
	if a := f.send("PATCH", "/none", "{}"); a.status != 403 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	r := httptest.NewRequest("GET", functions, nil)
	r.Header.Set("Good", "1")
	if a := f.do(r); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

// An upload costs no memory of its size.
func TestUploadMemory(t *testing.T) {
	f := newFixture(t, func(c *Config, _ *fixture) { c.Blobs = countingBlobs{} })
	body := func() io.Reader {
		return io.MultiReader(strings.NewReader(`{"FunctionName":"f","Code":{"ZipFile":"`), io.LimitReader(repeat{'A'}, 48<<20),
			bytes.NewReader([]byte(`"},"Role":"`+testRole+`","Runtime":"python3.12","Handler":"h"}`)))
	}
	f.send("GET", functions, nil) // reads the model
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if a := f.send("POST", functions, body()); a.status != 201 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	runtime.ReadMemStats(&after)
	allocated := after.TotalAlloc - before.TotalAlloc
	if allocated > 1<<20 {
		t.Errorf("an upload of 36 MB allocates %d bytes", allocated)
	}
}

// countingBlobs keep nothing.
type countingBlobs struct{ Blobs }

func (countingBlobs) Put(_ context.Context, r io.Reader) (Blob, error) {
	n, err := io.Copy(io.Discard, r)
	return Blob{[32]byte{1}, n, func() {}}, err
}
