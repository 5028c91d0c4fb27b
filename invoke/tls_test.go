package invoke

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// overTLS makes every rig serve with TLS, and its clients use it. Only TestOverTLS sets it.
var overTLS bool

// newCertificate makes a certificate for 127.0.0.1 with that serial number, and a pool to verify it.
func newCertificate(t *testing.T, serial int64) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	return c, pool
}

// secure makes a server expect TLS, and returns the configuration of its clients.
func secure(t *testing.T, c *Config) *tls.Config {
	t.Helper()
	certificate, pool := newCertificate(t, 1)
	server := TLSConfig(certificate)
	c.TLS = func() *tls.Config { return server }
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
}

// What a client sees, and what a hostile one can do, is the same with TLS.
func TestOverTLS(t *testing.T) {
	overTLS = true
	defer func() { overTLS = false }()
	for name, test := range map[string]func(*testing.T){
		"answers": TestHotAnswers, "hot and others": TestHotAndOthers, "refusal": TestHotRefusalIsNotLate, "drain": TestDrainOfBothKinds,
		"hostile senders": TestHostileSenders, "idle connections": TestIdleConnections,
		"slow reader": TestSlowReader, "client goes": TestClientGoes, "serve drains": TestServeDrains, "drain timeout": TestServeDrainTimeout,
		"stream": TestStreamComesAsItIsSent, "stream ends": TestStreamEnds, "stream tail": TestStreamTail, "stream without reader": TestStreamWithoutReader,
	} {
		t.Run(name, test)
	}
}

// A server with TLS speaks nothing older than 1.2, and only HTTP/1.1. A client without TLS is told.
func TestTLSVersions(t *testing.T) {
	var client *tls.Config
	r := newRig(t, 1, echo, func(c *Config) { client = secure(t, c) })
	addr, end := r.serve()
	for version, want := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		cfg := client.Clone()
		cfg.MinVersion, cfg.MaxVersion, cfg.NextProtos = version, version, []string{"h2", "http/1.1"}
		c := tls.Client(r.dial(addr), cfg)
		err := c.Handshake()
		if (err == nil) != want || want && c.ConnectionState().NegotiatedProtocol != "http/1.1" {
			t.Errorf("%s: %v, %q", tls.VersionName(version), err, c.ConnectionState().NegotiatedProtocol)
		}
		c.Close()
	}
	plain := r.dial(addr)
	post(plain, "{}")
	if got, body := status(t, plain); got != 400 || !strings.Contains(body, "https://") {
		t.Errorf("without TLS: %d %q", got, body)
	}
	if err := end(); err != nil || len(r.invocations()) > 0 {
		t.Errorf("%v, %d invocations", err, len(r.invocations()))
	}
}

// SEC-62: clients that do not finish their handshake are closed, and however many there are, they
// keep nobody out.
func TestHandshakeFlood(t *testing.T) {
	const limit = 16
	var client *tls.Config
	r := newRig(t, 1, echo, func(c *Config) {
		client = secure(t, c)
		c.MaxConns, c.HeaderTimeout = limit, hostileWait
	})
	addr, end := r.serve()
	hello := clientHello(t, client)
	var flood []net.Conn
	for i := range 10 * limit {
		c := r.dial(addr)
		switch i % 3 {
		case 0:
			_, _ = c.Write(hello[:len(hello)/2])
		case 1:
			_, _ = c.Write(hello) // the server has answered, and waits
		}
		flood = append(flood, c)
	}
	good := tls.Client(r.dial(addr), client)
	post(good, "{}")
	if got, _ := status(t, good); got != 200 {
		t.Errorf("beside the flood: %d, want 200", got)
	}
	for i, c := range flood { // by the limit of connections, or of time
		if _, err := io.Copy(io.Discard, c); err != nil && isTimeout(err) {
			t.Fatalf("connection %d is still open", i)
		}
	}
	if err := end(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if len(r.errors()) > 0 {
		t.Errorf("strangers have written into the log: %v", r.errors())
	}
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// clientHello returns the first message of a client.
func clientHello(t *testing.T, cfg *tls.Config) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_ = tls.Client(theirs, cfg).Handshake() // fails
		theirs.Close()
	}()
	b := make([]byte, 16<<10)
	n, err := ours.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	return b[:n]
}

// The end of a client is seen although what it sends last is encrypted; more requests are not taken
// for it.
func TestTLSPresence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var c Config
	client := secure(t, &c)
	for name, tt := range map[string]struct {
		do   func(client *tls.Conn, server *conn)
		ends bool
	}{
		"the client goes":          {func(c *tls.Conn, _ *conn) { c.Close() }, true},
		"the client is cut off":    {func(c *tls.Conn, _ *conn) { c.NetConn().Close() }, true},
		"the connection is closed": {func(_ *tls.Conn, s *conn) { s.Close() }, true},
		"the client says more": {func(c *tls.Conn, _ *conn) {
			for range 100 {
				_, _ = io.WriteString(c, "POST")
			}
		}, false},
		"the client says more, and goes": {func(c *tls.Conn, _ *conn) { _, _ = io.WriteString(c, "POST"); c.Close() }, true},
		"nothing":                        {func(*tls.Conn, *conn) {}, false},
	} {
		for _, first := range []bool{false, true} { // before anybody waits
			nc, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			peer := tls.Client(nc, client)
			accepted, err := (&hotListener{Listener: l, tls: c.TLS, header: time.Minute, write: time.Minute}).Accept()
			if err != nil {
				t.Fatal(err)
			}
			server := accepted.(*conn)
			shaken := make(chan error, 1)
			go func() { shaken <- peer.Handshake() }()
			if err := errors.Join(server.secure.handshake(time.Now().Add(time.Minute)), <-shaken); err != nil {
				t.Fatal(err)
			}
			p := &presence{Context: server.life, conn: server.Conn, arrived: true}
			if first {
				tt.do(peer, server)
			}
			done := p.Done()
			if !first {
				tt.do(peer, server)
			}
			if tt.ends {
				<-done
			}
			if ended := p.Err() != nil; ended != tt.ends {
				t.Errorf("%s, %v: ended %v", name, first, ended)
			}
			p.stop()
			peer.Close()
			server.Close()
		}
	}
}

// A connection whose peer reads nothing is closed at once, also while it is being written to.
func TestTLSCloseDoesNotWait(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var c Config
	client := secure(t, &c)
	for _, writing := range []bool{false, true} {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		server := newTLSConn(accepted, c.TLS(), time.Hour)
		shaken := make(chan error, 1)
		go func() { shaken <- tls.Client(nc, client).Handshake() }()
		if err := errors.Join(server.handshake(time.Now().Add(time.Minute)), <-shaken); err != nil {
			t.Fatal(err)
		}
		over := make(chan error, 1)
		if writing {
			go func() {
				for {
					if _, err := server.Write(make([]byte, 1<<20)); err != nil {
						over <- err
						return
					}
				}
			}()
		} else { // as TLS does when it answers a change of keys
			for {
				_ = server.SetWriteDeadline(time.Now().Add(time.Millisecond))
				if _, err := server.socket.Write(make([]byte, 1<<20)); err != nil {
					break
				}
			}
			_ = server.SetWriteDeadline(time.Time{})
			go func() {
				_, err := server.socket.Write(make([]byte, 1<<20))
				over <- err
			}()
		}
		server.Close()
		if err := <-over; err == nil {
			t.Errorf("writing %v: no error", writing)
		}
	}
}

// A new certificate is used by the next connection, while requests run: none is lost, and no
// session of the old certificate is resumed.
func TestNewCertificate(t *testing.T) {
	var current atomic.Pointer[tls.Config]
	first, pool := newCertificate(t, 1)
	last, _ := newCertificate(t, 2)
	leaf, err := x509.ParseCertificate(last.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	current.Store(TLSConfig(first))
	r := newRig(t, 8, echo, func(c *Config) { c.TLS = current.Load })
	addr, end := r.serve()
	client := &tls.Config{RootCAs: pool, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var answered atomic.Int64
	for range 4 {
		load.Go(func() {
			transport := &http.Transport{TLSClientConfig: client}
			defer transport.CloseIdleConnections()
			for n := 0; ctx.Err() == nil; n++ {
				if n%5 == 0 {
					transport.CloseIdleConnections()
				}
				res, err := (&http.Client{Transport: transport}).Post("https://"+addr+"/2015-03-31/functions/hello/invocations", "", strings.NewReader("{}"))
				if err != nil {
					t.Error(err)
					return
				}
				if body, err := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != "{}" || err != nil {
					t.Errorf("%s %s, %v", res.Status, body, err)
				}
				res.Body.Close()
				answered.Add(1)
			}
		})
	}
	for i := range 20 {
		before := answered.Load()
		for answered.Load() < before+10 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		current.Store(TLSConfig([]tls.Certificate{first, last}[i%2]))
	}
	stop()
	load.Wait()
	c := tls.Client(r.dial(addr), &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", ClientSessionCache: client.ClientSessionCache})
	if err := c.Handshake(); err != nil || c.ConnectionState().PeerCertificates[0].SerialNumber.Int64() != 2 {
		t.Errorf("%v, another certificate", err)
	}
	c.Close()
	current.Store(TLSConfig(last))
	again := tls.Client(r.dial(addr), &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", ClientSessionCache: client.ClientSessionCache})
	if err := again.Handshake(); err != nil || again.ConnectionState().DidResume {
		t.Errorf("%v, resumed %v", err, again.ConnectionState().DidResume)
	}
	again.Close()
	if err := end(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// Whoever authorizes a request may wait for something before the body has come: that holds up
// nobody who reads the body, and afterwards the end of the client is still seen.
func TestWaitBeforeTheBody(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler()) // is asked
	defer other.Close()
	for _, withTLS := range []bool{false, true} {
		asked, ended := make(chan struct{}), make(chan struct{})
		answered := make(chan *rapid.Invocation, 1)
		r := newRig(t, 1, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
			answered <- inv
			return &rapid.Result{Payload: inv.Payload, Done: ended}, nil
		}, func(c *Config) {
			overTLS = withTLS
			c.Authorize = func(r *http.Request, _ string) (BodyCheck, error) {
				ask, err := http.NewRequestWithContext(r.Context(), "GET", other.URL, nil)
				if err != nil {
					return nil, err
				}
				res, err := other.Client().Do(ask)
				if err != nil {
					return nil, err
				}
				asked <- struct{}{}
				return nil, res.Body.Close()
			}
		})
		overTLS = false
		addr, end := r.serve()
		c := r.dial(addr)
		_, _ = io.WriteString(c, requestHead+"X-Amz-Log-Type: Tail\r\nContent-Length: 2\r\n\r\n")
		<-asked
		_, _ = io.WriteString(c, "{}")
		if inv := <-answered; string(inv.Payload) != "{}" {
			t.Errorf("%s", inv.Payload)
		}
		c.Close() // while the request waits for its tail
		if err := end(); err != nil {
			t.Errorf("TLS %v: %v", withTLS, err)
		}
		close(ended)
	}
}
