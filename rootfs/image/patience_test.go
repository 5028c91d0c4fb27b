package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// hasty is patience for tests on the loopback.
var hasty = patience{silence: time.Minute, busy: 100 * time.Millisecond, pause: time.Millisecond, cuts: 4}

// randomBlob is a blob that no compression makes shorter, and its descriptor.
func randomBlob(size int) ([]byte, v1.Descriptor) {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	sum := sha256.Sum256(data)
	return data, v1.Descriptor{Size: int64(size), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
}

// blobsOf opens a repository of a registry whose blobs serve answers.
func blobsOf(t *testing.T, patience patience, serve http.HandlerFunc) *repository {
	t.Helper()
	reg := newRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if strings.HasPrefix(req.URL.Path, "/v2/blobs/blobs/") {
				serve(w, req)
				return
			}
			next.ServeHTTP(w, req)
		})
	})
	ref, err := name.ParseReference(reg.host + "/blobs:1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := openRepository(t.Context(), "test", ref.Context(), authn.Anonymous, patience)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A transfer that breaks off is resumed by a range, or begun anew where the registry does not
// know ranges, as often as it takes, while bytes come.
func TestCutTransfer(t *testing.T) {
	data, d := randomBlob(1 << 20)
	for name, test := range map[string]struct {
		ranges, length bool
		answers        int32 // in how many pieces the blob comes
	}{
		"ranges":           {true, true, 10},
		"no ranges":        {false, true, 3},
		"no length":        {true, false, 3},
		"whole, no length": {false, false, 3},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			r := blobsOf(t, hasty, func(w http.ResponseWriter, req *http.Request) {
				from, n := 0, int(asked.Add(1))
				if value, ok := strings.CutPrefix(req.Header.Get("Range"), "bytes="); ok && test.ranges {
					from, _ = strconv.Atoi(strings.TrimSuffix(value, "-"))
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
				}
				end := min(len(data)*n/int(test.answers), len(data))
				if test.length {
					w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
				}
				if from > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				_, _ = w.Write(data[from:end])
			})
			rc, err := r.blob(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			got, err := io.ReadAll(rc)
			if err != nil || !bytes.Equal(got, data) || asked.Load() != test.answers {
				t.Errorf("%d bytes of %d, %v, in %d answers of %d", len(got), len(data), err, asked.Load(), test.answers)
			}
		})
	}
}

// A transfer whose rest comes as another range than was asked for begins anew.
func TestOtherRange(t *testing.T) {
	data, d := randomBlob(1000)
	for _, part := range []string{"", "bytes 0-999/1000", "bytes 705-999/1000", "bytes */1000", "700-999"} {
		cut := false
		r := blobsOf(t, hasty, func(w http.ResponseWriter, req *http.Request) {
			switch {
			case req.Header.Get("Range") != "":
				w.Header().Set("Content-Range", part)
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(data[:300])
			case !cut:
				cut = true
				w.Header().Set("Content-Length", "1000")
				_, _ = w.Write(data[:700])
			default:
				_, _ = w.Write(data)
			}
		})
		rc, err := r.blob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, data) {
			t.Errorf("range %q: %d bytes, %v", part, len(got), err)
		}
		rc.Close()
	}
}

// A transfer that breaks off again and again without a byte more is given up, and the error
// says how far it came and what to do.
func TestCutForEver(t *testing.T) {
	data, d := randomBlob(1000)
	asked := 0
	for name, test := range map[string]struct {
		serve http.HandlerFunc
		want  string
	}{
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(data[:700])
		}, "broke off at byte 700, and so did the 4 that resumed it: unexpected EOF; check the network"},
		"always another range": {func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Length", "1000")
			if req.Header.Get("Range") != "" || asked > 0 {
				w.Header().Set("Content-Range", "bytes 705-999/1000")
				w.WriteHeader(http.StatusPartialContent)
			}
			asked++
			_, _ = w.Write(data[:700])
		}, `sent the range "bytes 705-999/1000" when the whole blob was asked for`},
		"gone": {func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(data[:700])
		}, "the registry does not give it"},
	} {
		t.Run(name, func(t *testing.T) {
			rc, err := blobsOf(t, hasty, test.serve).blob(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			if _, err := io.ReadAll(rc); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// An image is pulled from a registry that is busy at first, breaks connections before its
// answers, and cuts manifests.
func TestBusyRegistry(t *testing.T) {
	img := makeImage(t, mainConfig, baseLayer(t))
	var cut atomic.Int32
	var faulty atomic.Bool
	var mu sync.Mutex
	asked := map[string]int{} // by path
	reg := newRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if faulty.Load() {
				mu.Lock()
				asked[req.URL.Path]++
				n := asked[req.URL.Path]
				mu.Unlock()
				switch n {
				case 1:
					w.WriteHeader(http.StatusTooManyRequests)
					return
				case 2:
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				case 3:
					panic(http.ErrAbortHandler)
				case 4:
					if req.URL.Path == "/v2/" {
						break
					}
					w.Header().Set("Content-Length", "100000")
					w.WriteHeader(http.StatusOK)
					cut.Add(1)
					return
				}
			}
			next.ServeHTTP(w, req)
		})
	})
	given := reg.pushImage(t, "a:1", img)
	faulty.Store(true)
	pulled, err := ReadJob{Image: given, Arch: runtime.GOARCH}.pull(t.Context(), hasty)
	if err != nil {
		t.Fatal(err)
	}
	rc, err := pulled.layers[0].open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if n, err := io.Copy(io.Discard, rc); n != pulled.layers[0].size || err != nil || cut.Load() != 3 {
		t.Errorf("%d bytes, %v, %d transfers were cut", n, err, cut.Load())
	}
}

// A registry that stays busy is an error that says what to do.
func TestBusyForEver(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }))
	defer server.Close()
	_, err := ReadJob{Image: server.Listener.Addr().String() + "/a:1"}.pull(t.Context(), hasty)
	if err == nil || !strings.Contains(err.Error(), "too busy") || !strings.Contains(err.Error(), "docker login") {
		t.Errorf("%v", err)
	}
}

// roundTrip is a transport made of a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// slowBody gives a byte after each pause, and nothing once they are used up.
type slowBody struct {
	ctx    context.Context
	pauses []time.Duration
}

func (b *slowBody) Read(p []byte) (int, error) {
	if len(b.pauses) == 0 {
		<-b.ctx.Done()
		return 0, b.ctx.Err()
	}
	if err := sleep(b.ctx, b.pauses[0]); err != nil {
		return 0, err
	}
	b.pauses = b.pauses[1:]
	return copy(p, "x"), nil
}

func (b *slowBody) Close() error { return nil }

// A registry that sends nothing for a minute is given up, before its answer or within it,
// however many connections are tried meanwhile. One that sends a byte now and then is not,
// nor one whose bytes we do not read.
func TestSilentRegistry(t *testing.T) {
	get := func(t *testing.T, inner roundTrip) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry.example/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		return (&patient{patience: defaultPatience, inner: inner}).RoundTrip(req)
	}
	silent := func(req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	t.Run("no answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			if _, err := get(t, silent); !errors.Is(err, errSilent) || time.Since(began) != time.Minute {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		})
	})
	t.Run("two forms", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			p := &patient{patience: defaultPatience, inner: roundTrip(func(req *http.Request) (*http.Response, error) {
				if req.URL.Scheme == "https" {
					return nil, errors.Join(sleep(req.Context(), 10*time.Second), errors.New("TLS handshake timeout"))
				}
				return silent(req)
			})}
			for _, scheme := range []string{"https", "http"} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://registry.example/v2/", nil)
				if err != nil {
					t.Fatal(err)
				}
				_, err = p.RoundTrip(req)
				if errors.Is(err, errSilent) != (scheme == "http") {
					t.Errorf("%s: %v", scheme, err)
				}
			}
			if time.Since(began) != time.Minute {
				t.Errorf("after %v", time.Since(began))
			}
		})
	})
	t.Run("within the answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			resp, err := get(t, func(req *http.Request) (*http.Response, error) {
				pauses := []time.Duration{50 * time.Second, 59 * time.Second, 50 * time.Second}
				return &http.Response{StatusCode: http.StatusOK, Body: &slowBody{req.Context(), pauses}}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			began, buf := time.Now(), make([]byte, 10)
			for range 3 {
				if n, err := resp.Body.Read(buf); n != 1 || err != nil {
					t.Fatalf("%d, %v after %v", n, err, time.Since(began))
				}
				time.Sleep(10 * time.Minute) // our disk is slow
			}
			began = time.Now()
			if n, err := resp.Body.Read(buf); n != 0 || !errors.Is(err, errSilent) || time.Since(began) != time.Minute {
				t.Errorf("%d, %v after %v", n, err, time.Since(began))
			}
		})
	})
	t.Run("busy", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began, asked := time.Now(), 0
			resp, err := get(t, func(*http.Request) (*http.Response, error) {
				asked++
				return &http.Response{StatusCode: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"20"}}, Body: http.NoBody}, nil
			})
			if err != nil || resp.StatusCode != http.StatusTooManyRequests || asked != 4 || time.Since(began) != time.Minute {
				t.Errorf("%+v, %v, asked %d times in %v", resp, err, asked, time.Since(began))
			}
		})
	})
}

func TestCheckRedirect(t *testing.T) {
	for _, test := range []struct {
		from, to string
		ok       bool
	}{
		{"https://registry.example/v2/", "https://cdn.example/x", true},
		{"https://registry.example/v2/", "https://203.0.113.9/x", true},
		{"http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/x", true},
		{"https://registry.example/v2/", "http://169.254.169.254/x", false},
		{"https://registry.example/v2/", "http://10.0.0.1/x", false},
		{"https://registry.example/v2/", "http://[::1]/x", false},
		{"https://registry.example/v2/", "http://[::ffff:127.0.0.1]/x", false},
		{"https://registry.example/v2/", "http://0.0.0.0/x", false},
	} {
		from, err := http.NewRequest(http.MethodGet, test.from, nil)
		if err != nil {
			t.Fatal(err)
		}
		to, err := http.NewRequest(http.MethodGet, test.to, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkRedirect(to, []*http.Request{from}); (err == nil) != test.ok {
			t.Errorf("%s to %s: %v", test.from, test.to, err)
		}
	}
}
