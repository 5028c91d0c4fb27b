package pgtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"testing"
	"time"
)

// Terminate answers a client that asks for TLS, and passes what it says to the server, until
// one of them ends. It closes front.
func (s *Server) Terminate(front net.Conn, cert tls.Certificate) {
	defer front.Close()
	request := make([]byte, 8) // SSLRequest
	if _, err := io.ReadFull(front, request); err != nil {
		return
	}
	if _, err := front.Write([]byte("S")); err != nil {
		return
	}
	secure := tls.Server(front, &tls.Config{Certificates: []tls.Certificate{cert}})
	back, err := net.Dial("unix", s.Socket())
	if err != nil {
		return
	}
	defer back.Close()
	go func() {
		_, _ = io.Copy(back, secure)
		back.Close()
	}()
	_, _ = io.Copy(secure, back)
}

// Certificate makes one that is its own authority.
func Certificate(t testing.TB, host string) (ca []byte, cert tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
