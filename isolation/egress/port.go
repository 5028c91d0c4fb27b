package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/isolation"
)

// What both ends of an interface pair are called and know of each other, so that nobody
// has to ask. The pair has no third end: every sandbox's can have the same.
var (
	insideName = "eth0"
	outsideMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	insideMAC  = net.HardwareAddr{0x02, 0, 0, 0, 0, 2}
	gateway4   = net.IPv4(169, 254, 1, 1) // next hop of a sandbox's routes; nobody has the address
	gateway6   = net.ParseIP("fe80::1")
)

// maxNamed bounds the addresses that names have opened for one sandbox and service.
const maxNamed = 1024

// How long an address stays open that was found for a name: as long as its record is
// valid, but long enough for programs that look a name up once and connect later.
const (
	minOpen = 5 * time.Minute
	maxOpen = time.Hour
)

// Port is the connection of one sandbox. Close it before the sandbox's ids are leased
// again. It is safe for concurrent use.
type Port struct {
	gateway          *Gateway
	name             string // of the host's end
	v4, v6           netip.Addr
	chain            *nftables.Chain
	allowed, dropped string // counters
	named            []sets // by number of service

	mu     sync.Mutex
	opened map[opening]time.Time // until when
	closed bool
}

// opening is an address that a name has opened.
type opening struct {
	service int
	addr    netip.Addr
}

// Attach gives the network namespace an interface and lets through what n allows. The
// host ids of the sandbox begin at idBase.
func (g *Gateway) Attach(space *os.File, idBase uint32, n isolation.Network) (_ *Port, err error) {
	number := fmt.Sprintf("%04x", idBase>>16)
	p := &Port{
		gateway: g, name: linkPrefix(g.instance) + number,
		chain:   &nftables.Chain{Table: g.table, Name: "from-" + number},
		allowed: "allowed-" + number, dropped: "dropped-" + number,
		opened: map[opening]time.Time{},
	}
	p.v4, p.v6 = n.Addresses(idBase)
	if !g.ipv6 {
		p.v6 = netip.Addr{}
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("connect %s: %w", p.name, err)
		}
	}()
	// The addresses were another sandbox's once. What the host's table of connections
	// still has of that one must let nothing through for this.
	for _, a := range []netip.Addr{p.v4, p.v6} {
		if err := forgetConnections(a); err != nil {
			return nil, err
		}
	}
	if err := g.commit(func(c *nftables.Conn) error { return p.create(c, n) }); err != nil {
		return nil, errors.Join(g.watch.check(), fmt.Errorf("packet filter: %w", err))
	}
	err = p.link(space)
	if err == nil {
		err = g.watch.check() // now that the interface is there to be removed
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// create adds the sandbox's chain and what belongs to it.
func (p *Port) create(c *nftables.Conn, n isolation.Network) error {
	g := p.gateway
	c.AddChain(p.chain)
	for _, name := range []string{p.allowed, p.dropped} {
		c.AddObj(&nftables.CounterObj{Table: g.table, Name: name})
	}
	for i := range n.Policy.Services() {
		set := func(family int, key nftables.SetDatatype) *nftables.Set {
			return &nftables.Set{Table: g.table, Name: fmt.Sprintf("named%d-%d-%s", family, i, p.chain.Name), HasTimeout: true, Size: maxNamed, KeyType: key}
		}
		s := sets{set(4, nftables.TypeIPAddr), set(6, nftables.TypeIP6Addr)}
		for _, s := range []*nftables.Set{s.v4, s.v6} {
			if err := c.AddSet(s, nil); err != nil {
				return err
			}
		}
		p.named = append(p.named, s)
	}
	for _, f := range n.Filters() {
		ways, err := p.matches(f)
		if err != nil {
			return err
		}
		end := map[isolation.Verdict][]expr.Any{
			isolation.Accept: append(count(p.allowed), letThrough()...),
			isolation.Drop:   append(count(p.dropped), drop()...),
			isolation.Reject: append(count(p.dropped), reject()...),
		}[f.Verdict]
		for _, way := range ways {
			g.rule(c, p.chain, way, end)
		}
	}
	return c.SetAddElements(g.from, p.element())
}

// element leads from the sandbox's interface to its chain.
func (p *Port) element() []nftables.SetElement {
	return []nftables.SetElement{{Key: interfaceKey(p.name), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: p.chain.Name}}}
}

// link makes the pair of interfaces and the routes through it.
func (p *Port) link(space *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = p.name, outsideMAC
	var inside *netlink.Handle
	err := descriptor.Use(space, func(fd int) (err error) {
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: insideName, PeerHardwareAddr: insideMAC, PeerNamespace: netlink.NsFd(fd)}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("make the interfaces: %w", err)
		}
		if inside, err = netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("enter the sandbox's network namespace: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer inside.Close()
	// An end that is raised while the other is up sends at once. The one raised first does
	// when the kernel has seen that it has a carrier.
	if err := p.setUpInside(inside); err != nil {
		return err
	}
	if err := p.setUpOutside(); err != nil {
		return err
	}
	return waitUntilUp(inside)
}

// readyTime is how long the kernel may take to see a carrier; it takes less than a
// millisecond where it is not busy.
const readyTime = 5 * time.Second

// waitUntilUp returns when the sandbox's end sends what it is given. Linux from 6.8 on
// brings the state up to date when it is asked, older ones need the time.
func waitUntilUp(inside *netlink.Handle) error {
	for deadline := time.Now().Add(readyTime); ; time.Sleep(time.Millisecond) {
		l, err := inside.LinkByName(insideName)
		if err != nil {
			return err
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the sandbox's interface is %v after %v", l.Attrs().OperState, readyTime)
		}
	}
}

// setUpOutside makes the host's end forward, and sends what is for the sandbox there.
func (p *Port) setUpOutside() error {
	settings := map[string]string{"ipv4/conf/*/forwarding": "1", "ipv6/conf/*/disable_ipv6": "1"}
	if p.v6.IsValid() {
		settings = map[string]string{
			"ipv4/conf/*/forwarding": "1", "ipv6/conf/*/forwarding": "1",
			"ipv6/conf/*/accept_ra": "0", "ipv6/conf/*/addr_gen_mode": "1", // the host takes nothing from the sandbox and has no address there
			"ipv6/conf/*/force_forwarding": "1",
		}
	}
	for name, value := range settings {
		if err := p.set(name, value); err != nil {
			return err
		}
	}
	l, err := netlink.LinkByName(p.name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("raise %s: %w", p.name, err)
	}
	for _, a := range p.addresses() {
		to := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		if err := netlink.NeighAdd(neighbour(l, to.IP, insideMAC)); err != nil {
			return fmt.Errorf("neighbour %v of %s: %w", a, p.name, err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route to %v: %w", a, err)
		}
	}
	return nil
}

// setUpInside gives the sandbox's end its addresses and routes.
func (p *Port) setUpInside(h *netlink.Handle) error {
	l, err := h.LinkByName(insideName)
	if err != nil {
		return err
	}
	const none = 1 // IN6_ADDR_GEN_MODE_NONE: no link-local address
	if err := h.LinkSetIP6AddrGenMode(l, none); err != nil {
		return fmt.Errorf("address of the sandbox's interface: %w", err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("raise the sandbox's interface: %w", err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, a := range p.addresses() {
		own, holder := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, l
		if a.Is6() {
			holder = lo // works at once; of a new interface the kernel learns within a second that it is ready
		}
		if err := h.AddrAdd(holder, &netlink.Addr{IPNet: own, Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
		hop, all := gateway4, &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if a.Is6() {
			hop, all = gateway6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		if err := h.NeighAdd(neighbour(l, hop, outsideMAC)); err != nil {
			return fmt.Errorf("neighbour %v: %w", hop, err)
		}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Gw: hop, Src: own.IP, Flags: int(netlink.FLAG_ONLINK)}); err != nil {
			return fmt.Errorf("route through %v: %w", hop, err)
		}
	}
	return nil
}

func (p *Port) addresses() []netip.Addr {
	if p.v6.IsValid() {
		return []netip.Addr{p.v4, p.v6}
	}
	return []netip.Addr{p.v4}
}

func neighbour(l netlink.Link, ip net.IP, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: ip, HardwareAddr: mac, State: netlink.NUD_PERMANENT}
}

// set writes a setting of the host's end. One that this kernel does not have is not needed.
func (p *Port) set(name, value string) error {
	dir, file := filepath.Split(name)
	path := filepath.Join("/proc/sys/net", filepath.Dir(filepath.Clean(dir)), p.name, file)
	err := os.WriteFile(path, []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Allow opens the services of those numbers at addresses that were found for a name, for
// as long as their record is valid, within bounds. Closed ranges stay closed.
func (p *Port) Allow(services []int, addrs []netip.Addr, valid time.Duration) error {
	valid = min(max(valid, minOpen), maxOpen)
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("the sandbox is closed")
	}
	var add, renew []opening
	for _, i := range services {
		for _, a := range addrs {
			o := opening{i, a.Unmap()}
			if i < 0 || i >= len(p.named) {
				return fmt.Errorf("%s: no service %d", p.name, i)
			}
			if until, ok := p.opened[o]; !ok || !now.Before(until) {
				add = append(add, o)
			} else if until.Sub(now) < valid/2 {
				renew = append(renew, o)
			}
		}
	}
	if len(add)+len(renew) == 0 {
		return nil
	}
	err := p.gateway.commit(func(c *nftables.Conn) error { return p.open(c, renew, append(add, renew...), valid) })
	if errors.Is(err, unix.ENOENT) { // one to renew has expired meanwhile
		err = p.gateway.commit(func(c *nftables.Conn) error { return p.open(c, nil, append(add, renew...), valid) })
	}
	if err != nil {
		return fmt.Errorf("open an address for %s: %w", p.name, err)
	}
	for o, until := range p.opened {
		if !now.Before(until) {
			delete(p.opened, o)
		}
	}
	for _, o := range append(add, renew...) {
		p.opened[o] = now.Add(valid)
	}
	return nil
}

// open takes elements out of the sets and puts others in.
func (p *Port) open(c *nftables.Conn, out, in []opening, valid time.Duration) error {
	for _, o := range out {
		if err := c.SetDeleteElements(p.named[o.service].of(o.addr.Is4()), []nftables.SetElement{{Key: o.addr.AsSlice()}}); err != nil {
			return err
		}
	}
	for _, o := range in {
		if err := c.SetAddElements(p.named[o.service].of(o.addr.Is4()), []nftables.SetElement{{Key: o.addr.AsSlice(), Timeout: valid}}); err != nil {
			return err
		}
	}
	return nil
}

// Traffic reads the counters.
func (p *Port) Traffic() (isolation.Traffic, error) {
	t := isolation.Traffic{IPv4: p.v4, IPv6: p.v6}
	c, err := nftables.New()
	if err != nil {
		return t, fmt.Errorf("counters of %s: %w", p.name, err)
	}
	for name, to := range map[string][2]*uint64{p.allowed: {&t.AllowedPackets, &t.AllowedBytes}, p.dropped: {&t.DroppedPackets, &t.DroppedBytes}} {
		o, err := c.GetObject(&nftables.CounterObj{Table: p.gateway.table, Name: name})
		counter, ok := o.(*nftables.CounterObj)
		if err != nil || !ok {
			return t, fmt.Errorf("counter %s: %w", name, err)
		}
		*to[0], *to[1] = counter.Packets, counter.Bytes
	}
	return t, nil
}

// Close removes the interfaces, and then what let them through. It can be tried again.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	l, err := netlink.LinkByName(p.name)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing): // it went with the network namespace
	case err != nil:
		return fmt.Errorf("find interface %s: %w", p.name, err)
	default:
		if err := failpoint.Do(failpoint.RemoveLink, func() error { return removeLink(l) }); err != nil {
			return err
		}
	}
	err = failpoint.Do(failpoint.RemoveFilter, func() error { return p.gateway.commit(p.remove) })
	if errors.Is(err, unix.ENOENT) { // with the table all of it is gone
		if c, e := nftables.New(); e == nil {
			if there, e := hasTable(c, p.gateway.table.Name); e == nil && !there {
				err = nil
			}
		}
	}
	if err != nil {
		return fmt.Errorf("packet filter of %s: %w", p.name, err)
	}
	p.closed = true
	return nil
}

// remove takes away what create has added.
func (p *Port) remove(c *nftables.Conn) error {
	g := p.gateway
	if err := c.SetDeleteElements(g.from, []nftables.SetElement{{Key: interfaceKey(p.name)}}); err != nil {
		return err
	}
	c.FlushChain(p.chain)
	c.DelChain(p.chain)
	for _, s := range p.named {
		c.DelSet(s.v4)
		c.DelSet(s.v6)
	}
	for _, name := range []string{p.allowed, p.dropped} {
		c.DeleteObject(&nftables.CounterObj{Table: g.table, Name: name})
	}
	return nil
}
