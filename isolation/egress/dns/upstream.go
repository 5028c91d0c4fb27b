package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// found is a server's answer to a question.
type found struct {
	message []byte
	addrs   []netip.Addr
	valid   time.Duration // of the address record that is valid the shortest
}

// lookUp asks the servers in turn, by the protocol that the sandbox has used: an answer
// that is cut short makes it ask again by TCP.
func (r *Resolver) lookUp(ctx context.Context, network string, q dnsmessage.Question) (found, error) {
	errs := []error{fmt.Errorf("no name server has answered")}
	for server := range MaxServers {
		f, err := r.ask(ctx, network, server, q)
		if err == nil {
			return f, nil
		}
		errs = append(errs, err)
	}
	return found{}, errors.Join(errs...)
}

// ask asks one server, by a connection of its own.
func (r *Resolver) ask(ctx context.Context, network string, server int, q dnsmessage.Question) (found, error) {
	var id [2]byte
	if _, err := rand.Read(id[:]); err != nil {
		return found{}, err
	}
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: binary.BigEndian.Uint16(id[:]), RecursionDesired: true},
		Questions: []dnsmessage.Question{q},
	}
	packed, err := query.Pack()
	if err != nil {
		return found{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, serverTime)
	defer cancel()
	conn, err := r.cfg.Dial(ctx, network, server)
	if err != nil {
		return found{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if network == "tcp" {
		if err := writeMessage(conn, packed); err != nil {
			return found{}, err
		}
		answer, err := readMessage(conn, 1<<16-1)
		if err != nil {
			return found{}, err
		}
		return read(answer, query.ID, q)
	}
	if _, err := conn.Write(packed); err != nil {
		return found{}, err
	}
	buf := make([]byte, maxQuery)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return found{}, err
		}
		if f, err := read(buf[:n], query.ID, q); err == nil {
			return f, nil
		} // else somebody else's
	}
}

// read checks that a message answers a question, and takes the addresses out of it.
func read(message []byte, id uint16, q dnsmessage.Question) (found, error) {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil {
		return found{}, err
	}
	asked, err := p.Question()
	if err != nil {
		return found{}, err
	}
	if h.ID != id || !h.Response || asked.Type != q.Type || asked.Class != q.Class || !strings.EqualFold(asked.Name.String(), q.Name.String()) {
		return found{}, errors.New("the answer to another question")
	}
	if err := p.SkipAllQuestions(); err != nil {
		return found{}, err
	}
	f := found{message: message}
	for {
		rh, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return f, nil
		}
		if err != nil {
			return found{}, err
		}
		var addr netip.Addr
		switch {
		case rh.Class == dnsmessage.ClassINET && rh.Type == dnsmessage.TypeA:
			a, err := p.AResource()
			if err != nil {
				return found{}, err
			}
			addr = netip.AddrFrom4(a.A)
		case rh.Class == dnsmessage.ClassINET && rh.Type == dnsmessage.TypeAAAA:
			a, err := p.AAAAResource()
			if err != nil {
				return found{}, err
			}
			addr = netip.AddrFrom16(a.AAAA)
		default:
			if err := p.SkipAnswer(); err != nil {
				return found{}, err
			}
			continue
		}
		if valid := time.Duration(rh.TTL) * time.Second; len(f.addrs) == 0 || valid < f.valid {
			f.valid = valid
		}
		f.addrs = append(f.addrs, addr)
	}
}

// DialHost connects to a name server of the host, as [Config] wants it, by what the file
// path says, which is one such as /etc/resolv.conf.
func DialHost(ctx context.Context, path, network string, server int) (net.Conn, error) {
	servers, err := hostServers(path)
	if err != nil {
		return nil, err
	}
	if server < 0 || server >= len(servers) {
		return nil, fmt.Errorf("the host has %d name servers, number %d is not one", len(servers), server)
	}
	return new(net.Dialer).DialContext(ctx, network, servers[server].String())
}

// hostServers reads the host's name servers out of a file such as /etc/resolv.conf. One
// without any means the host itself (resolv.conf(5)).
func hostServers(path string) ([]netip.AddrPort, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the host's name servers: %w", err)
	}
	const port = 53
	var servers []netip.AddrPort
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil && len(servers) < MaxServers {
			servers = append(servers, netip.AddrPortFrom(a, port))
		}
	}
	if len(servers) == 0 {
		servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)}
	}
	return servers, nil
}
