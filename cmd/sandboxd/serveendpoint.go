package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// checkEndpoint checks that strangers can reach --listen only with TLS and with access keys.
func (o *serveOptions) checkEndpoint() error {
	secure := o.tls.Certificate != ""
	if secure != (o.tls.Key != "") {
		return errors.New("--tls-cert and --tls-key need each other: give both files, or neither")
	}
	host, _, err := net.SplitHostPort(o.listen)
	local := err == nil && isLoopback(host)
	switch {
	case local:
		return nil
	case o.unsigned:
		return fmt.Errorf("--unsigned-loopback: --listen %s is not a loopback address: everybody who can connect could change functions", o.listen)
	case !secure:
		return fmt.Errorf("--listen %s is not a loopback address, and without TLS anybody on the way can read and change requests: add --tls-cert and --tls-key, or listen on 127.0.0.1", o.listen)
	}
	return nil
}

// checkListener is checkEndpoint for the address that --listen has turned out to be.
func (o *serveOptions) checkListener(addr net.Addr) error {
	if tcp, ok := addr.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && (o.unsigned || o.tls.Key == "") {
		return fmt.Errorf("--listen %s is the address %s, which other hosts can reach: add --tls-cert and --tls-key, leave --unsigned-loopback out, or listen on 127.0.0.1", o.listen, tcp)
	}
	return nil
}

// isLoopback reports whether only this host can connect to the address.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
