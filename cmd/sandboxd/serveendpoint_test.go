package main

import (
	"net"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/daemon"
)

// Strangers reach the endpoint with TLS and with access keys only.
func TestCheckEndpoint(t *testing.T) {
	pair := daemon.KeyPairFiles{Certificate: "cert.pem", Key: "key.pem"}
	for _, tt := range []struct {
		listen   string
		tls      daemon.KeyPairFiles
		unsigned bool
		want     string // in the error; "" for none
	}{
		{"127.0.0.1:9000", daemon.KeyPairFiles{}, false, ""},
		{"localhost:9000", daemon.KeyPairFiles{}, true, ""},
		{"[::1]:9000", daemon.KeyPairFiles{}, true, ""},
		{"127.0.0.1:9000", pair, true, ""},
		{"0.0.0.0:9000", pair, false, ""},
		{"functions.example.com:9000", pair, false, ""},
		{"0.0.0.0:9000", daemon.KeyPairFiles{}, false, "add --tls-cert and --tls-key"},
		{":9000", daemon.KeyPairFiles{}, false, "add --tls-cert and --tls-key"},
		{"[::]:9000", daemon.KeyPairFiles{}, false, "add --tls-cert and --tls-key"},
		{"functions.example.com:9000", daemon.KeyPairFiles{}, false, "add --tls-cert and --tls-key"},
		{"0.0.0.0:9000", pair, true, "--unsigned-loopback"},
		{"0.0.0.0:9000", daemon.KeyPairFiles{}, true, "--unsigned-loopback"},
		{"127.0.0.1:9000", daemon.KeyPairFiles{Certificate: "cert.pem"}, false, "need each other"},
		{"127.0.0.1:9000", daemon.KeyPairFiles{Key: "key.pem"}, false, "need each other"},
	} {
		o := newServeOptions()
		o.listen, o.tls, o.unsigned = tt.listen, tt.tls, tt.unsigned
		err := o.checkEndpoint()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// A name such as localhost may stand for another address.
func TestCheckListener(t *testing.T) {
	pair := daemon.KeyPairFiles{Certificate: "cert.pem", Key: "key.pem"}
	for _, tt := range []struct {
		ip       string
		tls      daemon.KeyPairFiles
		unsigned bool
		ok       bool
	}{
		{"127.0.0.1", daemon.KeyPairFiles{}, true, true},
		{"192.0.2.1", daemon.KeyPairFiles{}, false, false},
		{"192.0.2.1", pair, false, true},
		{"192.0.2.1", pair, true, false},
	} {
		o := newServeOptions()
		o.listen, o.tls, o.unsigned = "localhost:9000", tt.tls, tt.unsigned
		if err := o.checkListener(&net.TCPAddr{IP: net.ParseIP(tt.ip), Port: 9000}); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
