//go:build integration

package serve

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// operatorPair is a certificate for 127.0.0.1 and its key, in an operator's files.
type operatorPair struct {
	t         *testing.T
	cert, key string
	issuer    *x509.Certificate
	issuerKey *ecdsa.PrivateKey
	pool      *x509.CertPool // has the issuer
}

func newOperatorPair(t *testing.T) *operatorPair {
	t.Helper()
	dir := t.TempDir()
	p := &operatorPair{t: t, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), pool: x509.NewCertPool()}
	p.issuer = &x509.Certificate{SerialNumber: big.NewInt(1000), Subject: pkix.Name{CommonName: "issuer"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	var der []byte
	der, p.issuerKey = p.sign(p.issuer, nil)
	issuer, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	p.pool.AddCert(issuer)
	p.write(1)
	return p
}

// sign makes a certificate, with the issuer's key or its own, and its key.
func (p *operatorPair) sign(template *x509.Certificate, by *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	if by == nil {
		by = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.issuer, key.Public(), by)
	if err != nil {
		p.t.Fatal(err)
	}
	return der, key
}

func (p *operatorPair) flags() []string {
	return []string{"--tls-cert=" + p.cert, "--tls-key=" + p.key}
}

// write replaces the files one after the other, as tools do.
func (p *operatorPair) write(serial int64) {
	p.t.Helper()
	der, key := p.sign(&x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: p.issuer.NotBefore, NotAfter: p.issuer.NotAfter,
	}, p.issuerKey)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{p.cert: {Type: "CERTIFICATE", Bytes: der}, p.key: {Type: "PRIVATE KEY", Bytes: secret}} {
		harness.WriteFile(p.t, path+".new", pem.EncodeToMemory(block), 0o600)
		if err := os.Rename(path+".new", path); err != nil {
			p.t.Fatal(err)
		}
	}
}

// tlsClient is client over https.
func (d *keyed) tlsClient(k accessKey, p *operatorPair) *lambda.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.pool}, MaxIdleConnsPerHost: 8}
	d.T.Cleanup(transport.CloseIdleConnections)
	return lambda.New(lambda.Options{
		Region: "us-east-1", BaseEndpoint: aws.String("https://" + d.Addr), RetryMaxAttempts: 1, HTTPClient: &http.Client{Transport: transport},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: k.id, SecretAccessKey: k.secret}, nil
		}),
	})
}

// serial returns the serial number of the certificate that a new connection gets.
func (d *keyed) serial(p *operatorPair) int64 {
	d.T.Helper()
	c, err := tls.Dial("tcp", d.Addr, &tls.Config{RootCAs: p.pool})
	if err != nil {
		d.T.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// The Go SDK makes, invokes and reads a function over https. When the operator replaces the
// certificate, no request is lost, and a pair that cannot be used is not taken.
func TestTLS(t *testing.T) {
	pair := newOperatorPair(t)
	f := harness.NewFolders(t)
	d := serveKeyed(t, f, pair.flags()...)
	first := d.first()
	if text := string(harness.ReadFile(t, filepath.Join(f.State, "first-key"))); !strings.Contains(text, "AWS_ENDPOINT_URL_LAMBDA=https://"+d.Addr+" ") {
		t.Errorf("%s has not the address", text)
	}
	c := d.tlsClient(first, pair)
	d.create(c, "f", "x")
	out, err := c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f")})
	if err != nil || !strings.HasPrefix(aws.ToString(out.Code.Location), "https://"+d.Addr+"/") {
		t.Fatalf("%+v, %v", out, err)
	}
	if res, err := http.Get("http://" + d.Addr + "/"); err != nil {
		t.Error(err)
	} else {
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "https://") {
			t.Errorf("without TLS: %s: %s", res.Status, text)
		}
	}

	stream, err := c.InvokeWithResponseStream(t.Context(), &lambda.InvokeWithResponseStreamInput{FunctionName: aws.String("f"), Payload: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	streamed := ""
	for e := range stream.GetStream().Events() {
		if chunk, ok := e.(*types.InvokeWithResponseStreamResponseEventMemberPayloadChunk); ok {
			streamed += string(chunk.Value.Payload)
		}
	}
	if err := stream.GetStream().Close(); err != nil || streamed != `"x"` {
		t.Errorf("a stream: %s, %v", streamed, err)
	}

	var load sync.WaitGroup
	var over atomic.Bool
	var answered atomic.Int64
	key := findKey(t, d.key("create", "--invoke", "*"))
	for range 3 {
		load.Go(func() {
			for !over.Load() {
				c := d.tlsClient(key, pair) // with connections of its own
				for range 5 {
					if got := invoke(t.Context(), c, "f"); got != `"x"` {
						t.Errorf("during the change: %s", got)
						return
					}
					answered.Add(1)
				}
			}
		})
	}
	if n := d.serial(pair); n != 1 {
		t.Errorf("certificate %d", n)
	}
	pair.write(2)
	d.WaitFor("the certificate of --tls-cert has changed")
	harness.Eventually(t, harness.Patience, func() string {
		if n := d.serial(pair); n != 2 {
			return fmt.Sprintf("certificate %d", n)
		}
		return ""
	})
	harness.WriteFile(t, pair.key, []byte("no key"), 0o600)
	d.WaitFor("cannot be used; the certificate that was read before stays")
	if n := d.serial(pair); n != 2 {
		t.Errorf("certificate %d", n)
	}
	before := answered.Load()
	harness.Eventually(t, harness.Patience, func() string {
		if answered.Load() < before+20 && !t.Failed() {
			return "no answers"
		}
		return ""
	})
	over.Store(true)
	load.Wait()
	t.Logf("%d answers", answered.Load())
	if strings.Contains(d.Log.Text(), "PRIVATE KEY") {
		t.Error("the log has a key")
	}
	for _, pid := range append(d.processes("sandboxd-worker"), d.processes("sandboxd-control")...) { // the worker has read it
		for _, target := range harness.Descriptors(t, pid) {
			if strings.Contains(target, "memfd:key pair") || strings.Contains(target, "memfd:worker-config") {
				t.Errorf("process %d has %s open", pid, target)
			}
		}
	}
	worker := d.processes("sandboxd-worker")
	if len(worker) != 1 {
		t.Fatalf("workers %v", worker)
	}
	if err := syscall.Kill(worker[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Patience, func() string { // the next worker has the pair from its start on
		if got := invoke(t.Context(), d.tlsClient(key, pair), "f"); got != `"x"` {
			return got
		}
		return ""
	})
	if n := d.serial(pair); n != 2 {
		t.Errorf("the next worker has certificate %d", n)
	}
	d.Stop()
}

// SEC-62: clients that do not finish their handshake keep nobody out.
func TestHandshakesThatDoNotEnd(t *testing.T) {
	pair := newOperatorPair(t)
	d := serveKeyed(t, harness.NewFolders(t), pair.flags()...)
	for i := range 600 { // more than the endpoint has connections
		c, err := net.Dial("tcp", d.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			_, _ = c.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
		}
	}
	if got := d.list(d.tlsClient(d.first(), pair)); got != "" {
		t.Errorf("beside them: %s", got)
	}
}

// What cannot be served securely is refused with the fix.
func TestTLSRefusals(t *testing.T) {
	pair := newOperatorPair(t)
	f := harness.NewFolders(t)
	both := func() []string { return append(pair.flags(), "--listen=127.0.0.1:0") }
	for name, tt := range map[string]struct {
		change func() error
		flags  []string
		want   string
	}{
		"other hosts without TLS":  {nil, []string{"--listen=0.0.0.0:0"}, "add --tls-cert and --tls-key, or listen on 127.0.0.1"},
		"any address without TLS":  {nil, []string{"--listen=:0"}, "add --tls-cert and --tls-key, or listen on 127.0.0.1"},
		"other hosts without keys": {nil, append(pair.flags(), "--listen=0.0.0.0:0", "--unsigned-loopback"), "everybody who can connect could change functions"},
		"one file":                 {nil, []string{"--listen=127.0.0.1:0", "--tls-cert=" + pair.cert}, "need each other"},
		"a key that others read":   {func() error { return os.Chmod(pair.key, 0o644) }, both(), "chmod it to 0600"},
		"a key of another user":    {func() error { return os.Chown(pair.key, 65534, 0) }, both(), "belongs to user 65534, who could replace it: chown it to user 0"},
		"no certificate":           {func() error { return os.Remove(pair.cert) }, both(), "--tls-cert: open " + pair.cert + ": no such file or directory"},
	} {
		pair.write(1)
		if tt.change != nil {
			if err := tt.change(); err != nil {
				t.Fatal(err)
			}
		}
		d := launchServe(t, f, tt.flags...)
		if code := d.WaitExit(); code == 0 || !strings.Contains(d.Log.Text(), tt.want) {
			t.Errorf("%s: exit code %d:\n%s", name, code, d.Log.Text())
		}
	}
}
