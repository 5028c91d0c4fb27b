package daemon

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/internal/message"
)

// newPair makes a certificate that expires then, and its key, in PEM.
func newPair(t *testing.T, expires time.Time) (certificate, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: expires}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// put writes a file.
func put(t *testing.T, path string, text []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// What is wrong with the operator's files is said with the fix.
func TestKeyPairFiles(t *testing.T) {
	dir := t.TempDir()
	files := KeyPairFiles{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	certificate, key := newPair(t, time.Now().Add(time.Hour))
	_, other := newPair(t, time.Now().Add(time.Hour))
	good := func() {
		put(t, files.Certificate, certificate, 0o644)
		put(t, files.Key, key, 0o640)
	}
	for name, tt := range map[string]struct {
		change func()
		want   string // "" for none
	}{
		"a good pair":                         {func() {}, ""},
		"a key that others read":              {func() { put(t, files.Key, key, 0o644) }, "has mode 0644, so that others can read or change it: chmod it to 0600"},
		"a key of a group that may change it": {func() { put(t, files.Key, key, 0o660) }, "chmod it to 0600"},
		"the key of another":                  {func() { put(t, files.Key, other, 0o600) }, "private key does not match public key"},
		"files exchanged":                     {func() { put(t, files.Certificate, key, 0o600); put(t, files.Key, certificate, 0o600) }, "the second its private key without a password"},
		"an empty certificate":                {func() { put(t, files.Certificate, nil, 0o600) }, "--tls-cert " + files.Certificate + ": the file is empty"},
		"no key":                              {func() { os.Remove(files.Key) }, "--tls-key: open " + files.Key + ": no such file"},
		"a key that is too long":              {func() { put(t, files.Key, bytes.Repeat([]byte("x"), maxPEM+1), 0o600) }, "of at most"},
		"a pipe": {func() {
			os.Remove(files.Key)
			if err := syscall.Mkfifo(files.Key, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is not a regular file"},
		"a link to a good key": {func() {
			put(t, files.Key+"1", key, 0o600)
			os.Remove(files.Key)
			if err := os.Symlink(files.Key+"1", files.Key); err != nil {
				t.Fatal(err)
			}
		}, ""},
	} {
		os.Remove(files.Key)
		good()
		tt.change()
		pair, _, err := files.read()
		switch {
		case tt.want == "" && (err != nil || !bytes.Equal(pair.Key, key)):
			t.Errorf("%s: %v", name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error has the key: %v", name, err)
		}
	}
}

// Files that change give a new pair. A pair that cannot be used changes nothing, and is logged once,
// if it is still there at the next look.
func TestKeyPairChanges(t *testing.T) {
	dir := t.TempDir()
	files := KeyPairFiles{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	write := func(expires time.Time) {
		certificate, key := newPair(t, expires)
		put(t, files.Certificate, certificate, 0o644)
		put(t, files.Key, key, 0o600)
	}
	write(time.Now().Add(time.Hour))
	var out bytes.Buffer
	log := logrus.New()
	log.SetOutput(&out)
	k, err := openKeyPairs(files, log)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	k.now = func() time.Time { return now }
	look := func() uint64 {
		t.Helper()
		now = now.Add(checkPause)
		return k.newest().Number
	}
	if n := look(); n != 1 || out.Len() > 0 {
		t.Errorf("pair %d; %s", n, out.String())
	}
	if f, err := k.newer(1); f != nil || err != nil {
		t.Errorf("%v, %v", f, err)
	}
	write(time.Now().Add(time.Hour))
	if n := k.newest().Number; n != 1 {
		t.Error("the files were read again at once")
	}
	if n := look(); n != 2 || strings.Count(out.String(), "has changed") != 1 {
		t.Errorf("pair %d; %s", n, out.String())
	}
	f, err := k.newer(1)
	if err != nil {
		t.Fatal(err)
	}
	if sent, err := message.ReadKeyPair(f); err != nil || sent.Number != 2 || !bytes.Equal(sent.Key, k.current.Key) {
		t.Errorf("%+v, %v", sent, err)
	}
	out.Reset()
	_, key := newPair(t, time.Now().Add(time.Hour))
	put(t, files.Key, key, 0o600) // the certificate is to follow
	if n := look(); n != 2 || out.Len() > 0 {
		t.Errorf("pair %d; %s", n, out.String())
	}
	for range 3 {
		if n := look(); n != 2 || strings.Count(out.String(), "cannot be used; the certificate that was read before stays") != 1 {
			t.Errorf("pair %d; %s", n, out.String())
		}
	}
	write(time.Now().Add(-time.Hour)) // better than none: the clock of this host may be wrong
	if n := look(); n != 3 || !strings.Contains(out.String(), "has expired") {
		t.Errorf("pair %d; %s", n, out.String())
	}
	if strings.Contains(out.String(), "PRIVATE") {
		t.Errorf("the log has a key: %s", out.String())
	}
}

// Without TLS there is no pair.
func TestNoKeyPair(t *testing.T) {
	if k, err := openKeyPairs(KeyPairFiles{}, nil); err != nil || k.newest() != nil {
		t.Errorf("%v, %v", k, err)
	}
}
