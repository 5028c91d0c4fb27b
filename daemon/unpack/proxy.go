package unpack

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/layer"
)

// Bounds of the proxy.
const (
	maxAllowed     = 8       // services
	maxAllowText   = 4 << 10 // bytes of the list
	maxConnections = 64      // at once
	dialTime       = time.Minute
)

// proxy is an HTTP proxy that connects to the services of one list only. The program in the
// sandbox gives the list before it runs anything of a package, and nobody can change it.
type proxy struct {
	through   func(*http.Request) (*url.URL, error) // the operator's proxy for a request
	transport *http.Transport
	places    chan struct{} // one for each connection

	mu      sync.Mutex
	allowed []string // host:port; nil before it is given
}

func newProxy() *proxy {
	p := &proxy{through: http.ProxyFromEnvironment, places: make(chan struct{}, maxConnections)}
	p.transport = &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) { return p.through(r) }, DialContext: dialer.DialContext,
		DisableCompression: true, ResponseHeaderTimeout: 5 * time.Minute,
	}
	return p
}

var dialer = net.Dialer{Timeout: dialTime}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case p.places <- struct{}{}:
		defer func() { <-p.places }()
	default:
		http.Error(w, "too many connections", http.StatusServiceUnavailable)
		return
	}
	switch {
	case r.Method == http.MethodConnect:
		p.connect(w, r)
	case r.URL.Host != "":
		p.forward(w, r)
	case r.Method == http.MethodPut && r.URL.Path == layer.AllowPath:
		if err := p.allow(http.MaxBytesReader(w, r.Body, maxAllowText)); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		http.NotFound(w, r)
	}
}

// allow takes the list.
func (p *proxy) allow(body io.Reader) error {
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	list := []string{}
	for _, service := range strings.Fields(string(text)) {
		host, port, err := net.SplitHostPort(service)
		if n, e := strconv.Atoi(port); err != nil || e != nil || n < 1 || n > 65535 || host == "" {
			return fmt.Errorf("%q is not host:port", service)
		}
		list = append(list, strings.ToLower(service))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.allowed != nil:
		return errors.New("the list was given before")
	case len(list) == 0 || len(list) > maxAllowed:
		return fmt.Errorf("the list has %d services; 1 to %d are allowed", len(list), maxAllowed)
	}
	p.allowed = list
	return nil
}

// check returns an error unless the service is on the list.
func (p *proxy) check(service string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(p.allowed, strings.ToLower(service)) {
		return nil
	}
	return fmt.Errorf("sandboxd allows connections to the registry only (%s), not to %s", strings.Join(p.allowed, ", "), service)
}

// connect serves CONNECT: bytes in both directions.
func (p *proxy) connect(w http.ResponseWriter, r *http.Request) {
	if err := p.check(r.Host); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	out, err := p.dial(r.Context(), r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer out.Close()
	in, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer in.Close()
	if _, err := io.WriteString(in, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(in, out)
		in.Close()
	}()
	_, _ = io.Copy(out, buffered)
	out.Close()
	<-done
}

// forward serves a request for another server.
func (p *proxy) forward(w http.ResponseWriter, r *http.Request) {
	err := p.check(withPort(r.URL))
	if err == nil && r.URL.Scheme != "http" {
		err = fmt.Errorf("a proxy does not forward %q", r.URL.Scheme)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	request := r.Clone(r.Context())
	request.RequestURI, request.Close = "", false
	for _, name := range []string{"Connection", "Proxy-Connection", "Proxy-Authorization", "Keep-Alive", "Te", "Trailer", "Upgrade"} {
		request.Header.Del(name)
	}
	response, err := p.transport.RoundTrip(request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	for name, values := range response.Header {
		if name != "Connection" && name != "Keep-Alive" {
			w.Header()[name] = values
		}
	}
	w.WriteHeader(response.StatusCode)
	_, _ = io.Copy(w, response.Body)
}

// dial connects to a service, through the operator's proxy for HTTPS if there is one.
func (p *proxy) dial(ctx context.Context, service string) (net.Conn, error) {
	through, err := p.through(&http.Request{URL: &url.URL{Scheme: "https", Host: service}})
	if err != nil {
		return nil, err
	}
	if through == nil {
		return dialer.DialContext(ctx, "tcp", service)
	}
	if through.Scheme != "http" {
		return nil, fmt.Errorf("HTTPS_PROXY %s: only proxies with http:// can be used here", through.Redacted())
	}
	conn, err := dialer.DialContext(ctx, "tcp", withPort(through))
	if err != nil {
		return nil, err
	}
	if err := tunnel(conn, through, service); err != nil {
		conn.Close()
		return nil, fmt.Errorf("the proxy %s: %w", through.Redacted(), err)
	}
	return conn, nil
}

// withPort is the host and the port of an address with http://.
func withPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "80")
}

// tunnel asks a proxy, which conn leads to, for a connection to the service.
func tunnel(conn net.Conn, through *url.URL, service string) error {
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: service}, Host: service, Header: http.Header{}}
	if user := through.User; user != nil {
		password, _ := user.Password()
		request.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	_ = conn.SetDeadline(time.Now().Add(dialTime))
	if err := request.Write(conn); err != nil {
		return err
	}
	buffered := bufio.NewReader(conn)
	response, err := http.ReadResponse(buffered, request)
	switch {
	case err != nil:
		return err
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("refuses %s: %s", service, response.Status)
	case buffered.Buffered() > 0:
		return errors.New("sends before it is asked")
	}
	return conn.SetDeadline(time.Time{})
}
