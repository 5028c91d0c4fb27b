package main

import (
	"fmt"
	"net"
	"net/netip"
)

// checkEndpoint checks that strangers cannot reach --listen: there is no TLS, so that anybody on
// the way could read and change requests.
func (o *serveOptions) checkEndpoint() error {
	host, _, err := net.SplitHostPort(o.listen)
	switch {
	case err == nil && isLoopback(host):
		return nil
	case o.unsigned:
		return fmt.Errorf("--unsigned-loopback: --listen %s is not a loopback address: everybody who can connect could change functions", o.listen)
	}
	return fmt.Errorf("--listen %s is not a loopback address, and without TLS anybody on the way can read and change requests: listen on 127.0.0.1", o.listen)
}

// checkListener is checkEndpoint for the address that --listen has turned out to be.
func (o *serveOptions) checkListener(addr net.Addr) error {
	if tcp, ok := addr.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		return fmt.Errorf("--listen %s is the address %s, which other hosts can reach: listen on 127.0.0.1", o.listen, tcp)
	}
	return nil
}

// isLoopback reports whether only this host can connect to the address.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
