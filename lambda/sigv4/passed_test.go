package sigv4

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

// A signed request that a server passes on to another over net/http, as the worker does to
// control, is still verified there. The target has to stay as it came, which takes
// URL.Opaque, and net/http must add no header of which a client may have signed the absence.
func TestPassedOn(t *testing.T) {
	control := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := verify(r, now); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
		}
	}))
	defer control.Close()
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	worker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.URL = &url.URL{Scheme: "http", Host: control.Listener.Addr().String(), Opaque: r.RequestURI}
		out.RequestURI = ""
		if out.Header["User-Agent"] == nil {
			out.Header["User-Agent"] = nil
		}
		resp, err := transport.RoundTrip(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	defer worker.Close()
	for name, e := range examples {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", worker.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := c.Write(e.sign(t)); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s, %v", resp.Status, text, err)
			}
		})
	}
}
