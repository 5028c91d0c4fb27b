// Package storeurl reads the address of a PostgreSQL database that keeps a store. Root, which
// connects, and the control process, which speaks to the server, read it alike.
package storeurl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// URL is the address of a database:
//
//	postgres://USER@HOST:PORT/DATABASE?hostaddr=ADDRESS&sslmode=disable
//	postgres://USER@/DATABASE?host=FOLDER
//
// The parameters are PostgreSQL's own. In the second form the server has a socket in a folder of
// this host.
type URL struct {
	User, Database string
	Host           string // a name or an address, whom the server's certificate must name; or the folder
	Port           string
	HostAddr       netip.Addr // of the host, if it is given or the host is one; see Address
	Plain          bool       // without TLS (sslmode=disable)
}

// IsFolder reports whether the server has a socket on this host.
func (u *URL) IsFolder() bool { return strings.HasPrefix(u.Host, "/") }

// Parse reads an address. Errors do not repeat it: it may have a password.
func Parse(text string) (*URL, error) {
	p, err := url.Parse(text)
	if err != nil || p.Scheme != "postgres" && p.Scheme != "postgresql" || p.User == nil || p.User.Username() == "" || len(p.Path) < 2 || p.Fragment != "" {
		return nil, errors.New("the store's address is not of the form postgres://USER@HOST:PORT/DATABASE")
	}
	if _, has := p.User.Password(); has {
		return nil, errors.New("the store's address has a password, which others on this host could read: give it in a file, by --store-password-file, or as the systemd credential store-password")
	}
	u := &URL{User: p.User.Username(), Database: p.Path[1:], Host: p.Hostname(), Port: p.Port()}
	if u.Port == "" {
		u.Port = "5432"
	}
	for key, values := range p.Query() {
		switch value := values[len(values)-1]; {
		case key == "host" && u.Host == "":
			u.Host = value
		case key == "host":
			return nil, errors.New("the store's address has two hosts")
		case key == "hostaddr":
			if u.HostAddr, err = netip.ParseAddr(value); err != nil {
				return nil, fmt.Errorf("hostaddr of the store's address is no IP address: %w", err)
			}
		case key == "sslmode" && value == "disable":
			u.Plain = true
		case key == "sslmode" && value == "verify-full":
		case key == "sslmode":
			return nil, fmt.Errorf("sslmode=%s of the store's address does not verify who the server is: it may be verify-full, which is the default, or disable", value)
		default:
			return nil, fmt.Errorf("the store's address has the parameter %q: it may have host, hostaddr and sslmode", key)
		}
	}
	if u.Host == "" {
		return nil, errors.New("the store's address names no host")
	}
	if addr, err := netip.ParseAddr(u.Host); err == nil && !u.HostAddr.IsValid() {
		u.HostAddr = addr
	}
	if u.Host == "localhost" && !u.HostAddr.IsValid() {
		u.HostAddr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return u, nil
}

// Address returns where to connect. A name of a host is an error without hostaddr: root reads
// no answers of name servers.
func (u *URL) Address() (network, address string, err error) {
	switch {
	case u.IsFolder():
		return "unix", u.Host + "/.s.PGSQL." + u.Port, nil
	case !u.HostAddr.IsValid():
		return "", "", fmt.Errorf("the store's address has the name %s, which sandboxd, as root, does not look up: add ?hostaddr=ADDRESS to it; the certificate is verified for the name", u.Host)
	}
	return "tcp", net.JoinHostPort(u.HostAddr.String(), u.Port), nil
}
