package unpack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/layer"
)

// allow gives the proxy at address the list, and returns the status of the answer.
func allow(t *testing.T, address, list string) int {
	t.Helper()
	request, err := http.NewRequest(http.MethodPut, address+layer.AllowPath, strings.NewReader(list))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

// through is a client of the proxy at address.
func through(t *testing.T, address string, tls *httptest.Server) *http.Client {
	t.Helper()
	proxy, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{Proxy: http.ProxyURL(proxy)}
	if tls != nil {
		transport.TLSClientConfig = tls.Client().Transport.(*http.Transport).TLSClientConfig
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// get wants the text from an address, or an error that has the text.
func get(t *testing.T, client *http.Client, address, want string) {
	t.Helper()
	response, err := client.Get(address)
	got := ""
	if err != nil {
		got = err.Error()
	} else {
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		got = string(text)
	}
	if !strings.Contains(got, want) {
		t.Errorf("%s: %q, want %q", address, got, want)
	}
}

// hello is a server that says hello.
func hello(t *testing.T, start func(http.Handler) *httptest.Server) *httptest.Server {
	s := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello "+r.URL.Path) }))
	t.Cleanup(s.Close)
	return s
}

func TestProxyAllowsOnlyItsList(t *testing.T) {
	plain, secure := hello(t, httptest.NewServer), hello(t, httptest.NewTLSServer)
	otherPlain, otherSecure := hello(t, httptest.NewServer), hello(t, httptest.NewTLSServer)
	p := httptest.NewServer(newProxy())
	defer p.Close()
	client := through(t, p.URL, secure)
	get(t, client, plain.URL, "registry only") // before the list

	for _, list := range []string{"", "nohost", ":80", "a:0", "a:65536", "a:http", strings.Repeat("a:1\n", maxAllowed+1), strings.Repeat("a", maxAllowText+1)} {
		if status := allow(t, p.URL, list); status != http.StatusForbidden {
			t.Errorf("list %.20q: status %d", list, status)
		}
	}
	list := plain.Listener.Addr().String() + "\n" + secure.Listener.Addr().String() + "\n"
	if status := allow(t, p.URL, list); status != http.StatusNoContent {
		t.Fatalf("status %d", status)
	}
	get(t, client, plain.URL+"/x", "hello /x")
	get(t, client, secure.URL+"/y", "hello /y")
	get(t, client, otherPlain.URL, "registry only")
	get(t, client, otherSecure.URL, "Forbidden")
	if status := allow(t, p.URL, otherPlain.Listener.Addr().String()); status != http.StatusForbidden {
		t.Errorf("a second list has status %d", status)
	}
	get(t, client, otherPlain.URL, "registry only")
	get(t, http.DefaultClient, p.URL+"/", "404")
}

// TestProxyThroughAnother: connections go through the operator's own proxy.
func TestProxyThroughAnother(t *testing.T) {
	secure := hello(t, httptest.NewTLSServer)
	asked := make(chan string, 1)
	operators := newProxy()
	outer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			asked <- r.Host + " " + r.Header.Get("Proxy-Authorization")
		}
		operators.ServeHTTP(w, r)
	}))
	defer outer.Close()
	allow(t, outer.URL, secure.Listener.Addr().String())
	address, err := url.Parse(strings.Replace(outer.URL, "http://", "http://user:word@", 1))
	if err != nil {
		t.Fatal(err)
	}
	inner := newProxy()
	inner.through = http.ProxyURL(address)
	p := httptest.NewServer(inner)
	defer p.Close()
	allow(t, p.URL, secure.Listener.Addr().String()+"\nexample.invalid:443")
	get(t, through(t, p.URL, secure), secure.URL, "hello /")
	if got, want := <-asked, secure.Listener.Addr().String()+" Basic dXNlcjp3b3Jk"; got != want {
		t.Errorf("the operator's proxy was asked for %q, want %q", got, want)
	}
	if _, err := inner.dial(t.Context(), "example.invalid:443"); err == nil || !strings.Contains(err.Error(), "refuses example.invalid:443") || strings.Contains(err.Error(), "word") {
		t.Errorf("error %v", err)
	}
	inner.through = func(*http.Request) (*url.URL, error) { return nil, errors.New("no such proxy") }
	if _, err := inner.dial(t.Context(), net.JoinHostPort("127.0.0.1", "1")); err == nil {
		t.Error("no error of the environment")
	}
}

func TestHarmless(t *testing.T) {
	var b bytes.Buffer
	if n, err := (harmless{&b}).Write([]byte("a\x1b[31mb\r\n\tc\x00\x7f\xe2\x80\xa6\x9b1m")); n != 19 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if got, want := b.String(), "a?[31mb\n\tc???1m"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
