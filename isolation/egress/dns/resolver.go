// Package dns answers the name lookups of one sandbox: those that the sandbox may
// make it passes on to the host's name servers, and before it passes an answer back it
// has the addresses in it opened for the sandbox.
//
// What a sandbox sends is hostile. Of a query only name and type are passed on, in a
// message of the resolver's own, and everything a sandbox can have at once is bounded.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sandboxd/sandboxd/internal/accept"
)

// Bounds for one sandbox.
const (
	maxLookups     = 32 // by UDP, at once; what is beyond is dropped, as UDP may
	maxConnections = 8  // by TCP; others wait
	maxQuery       = 4096
	idleTime       = 10 * time.Second // of a TCP connection, and of one query in it
	serverTime     = 2 * time.Second  // for the answer of one server
)

// MaxServers is how many name servers are asked at most (resolv.conf(5)).
const MaxServers = 3

// Config says what a sandbox may look up. Its functions are called from many goroutines.
type Config struct {
	// Match returns which services a name opens, by number; none if it must not be looked
	// up. The name is in lower case and has no dot at its end.
	Match func(name string) []int
	// Open opens the services at the addresses that were found, for as long as their
	// records are valid. The sandbox gets its answer afterwards.
	Open func(ctx context.Context, services []int, addrs []netip.Addr, valid time.Duration) error
	// Dial connects to the name server at that place of the list, the best of which is 0,
	// by "udp" or "tcp", from a port that nobody can guess. It fails for a place that is
	// beyond the end of the list.
	Dial func(ctx context.Context, network string, server int) (net.Conn, error)
}

// Resolver serves one sandbox.
type Resolver struct {
	cfg               Config
	answered, refused atomic.Uint64
}

// New returns a resolver that does not serve yet.
func New(cfg Config) *Resolver { return &Resolver{cfg: cfg} }

// Lookups returns how many lookups were passed on, and how many refused.
func (r *Resolver) Lookups() (answered, refused uint64) { return r.answered.Load(), r.refused.Load() }

// Serve answers on both sockets until ctx ends, and closes them. It goes on after errors
// that pass, such as too many open files.
func (r *Resolver) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	tcp = accept.Listener(tcp, nil)
	var serving sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { udp.Close(); tcp.Close() })
	defer stop()
	var errUDP, errTCP error
	serving.Go(func() { defer cancel(); errUDP = r.serveUDP(ctx, udp) })
	serving.Go(func() { defer cancel(); errTCP = r.serveTCP(ctx, tcp) })
	serving.Wait()
	return errors.Join(errUDP, errTCP)
}

// ended turns the error of a socket that was closed for ctx's end into none.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serve lookups: %w", err)
}

func (r *Resolver) serveUDP(ctx context.Context, conn net.PacketConn) error {
	var lookups sync.WaitGroup
	defer lookups.Wait()
	free := make(chan struct{}, maxLookups)
	buf := make([]byte, maxQuery)
	for {
		var n int
		var from net.Addr
		err := accept.Retry(ctx, func() (err error) {
			n, from, err = conn.ReadFrom(buf)
			return err
		}, nil)
		if err != nil {
			return ended(ctx, err)
		}
		select {
		case free <- struct{}{}:
		default:
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		lookups.Go(func() {
			defer func() { <-free }()
			if answer := r.answer(ctx, "udp", query); answer != nil {
				_, _ = conn.WriteTo(answer, from) // who asked may be gone
			}
		})
	}
}

func (r *Resolver) serveTCP(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	free := make(chan struct{}, maxConnections)
	for {
		free <- struct{}{}
		conn, err := l.Accept()
		if err != nil {
			return ended(ctx, err)
		}
		conns.Go(func() {
			defer func() { <-free }()
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			r.converse(ctx, conn)
		})
	}
}

// converse answers the queries of one TCP connection, one after the other.
func (r *Resolver) converse(ctx context.Context, conn net.Conn) {
	for {
		if conn.SetDeadline(time.Now().Add(idleTime)) != nil {
			return
		}
		query, err := readMessage(conn, maxQuery)
		if err != nil {
			return
		}
		answer := r.answer(ctx, "tcp", query)
		if answer == nil || writeMessage(conn, answer) != nil {
			return
		}
	}
}

// readMessage reads a message with its length before it (RFC 1035, 4.2.2).
func readMessage(from io.Reader, limit int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(from, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > limit {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	message := make([]byte, n)
	_, err := io.ReadFull(from, message)
	return message, err
}

func writeMessage(to io.Writer, message []byte) error {
	if len(message) > 1<<16-1 {
		return fmt.Errorf("a message of %d bytes", len(message))
	}
	_, err := to.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}

// answer returns what a query is answered with; nil for what is no query.
func (r *Resolver) answer(ctx context.Context, network string, query []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return failure(h, nil, dnsmessage.RCodeFormatError)
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return failure(h, nil, dnsmessage.RCodeFormatError)
	}
	name := strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")
	services := r.cfg.Match(name)
	if h.OpCode != 0 || q.Class != dnsmessage.ClassINET || len(services) == 0 {
		r.refused.Add(1)
		return failure(h, &q, dnsmessage.RCodeRefused)
	}
	r.answered.Add(1)
	found, err := r.lookUp(ctx, network, q)
	if err != nil {
		return failure(h, &q, dnsmessage.RCodeServerFailure)
	}
	if len(found.addrs) > 0 {
		if err := r.cfg.Open(ctx, services, found.addrs, found.valid); err != nil {
			return failure(h, &q, dnsmessage.RCodeServerFailure)
		}
	}
	binary.BigEndian.PutUint16(found.message, h.ID)
	return found.message
}

// failure is an answer without records.
func failure(h dnsmessage.Header, q *dnsmessage.Question, code dnsmessage.RCode) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: code,
	}}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
	}
	packed, err := m.Pack()
	if err != nil {
		return nil // its question cannot be repeated
	}
	return packed
}
