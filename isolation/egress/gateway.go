// Package egress connects sandboxes to the host's network: an interface pair for each,
// and the host's packet filter, which lets through what the sandbox's policy allows.
// What is let through is decided by package isolation; this package tells the kernel.
//
// All that it makes on the host carries the daemon's instance id in its name: the
// table of the packet filter, and the host's end of each interface pair. It changes
// nothing else there: no rule of others, no setting of the host's own interfaces.
//
// It needs root, and works in the network namespace of the calling process.
package egress

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/google/nftables"
	nfnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// Gateway is one daemon's part of the host's packet filter. It is safe for concurrent use.
type Gateway struct {
	instance string
	table    *nftables.Table
	from     *nftables.Set // map of interfaces to chains
	closed   sets
	ipv6     bool   // the host forwards IPv6
	watch    *watch // nil in a trial
}

// sets hold addresses, one for each family.
type sets struct{ v4, v6 *nftables.Set }

// of returns the set of a family.
func (s sets) of(is4 bool) *nftables.Set {
	if is4 {
		return s.v4
	}
	return s.v6
}

// instanceForm is that of package instance: it leaves room for a number in the name of
// an interface, which is 15 bytes at most.
var instanceForm = regexp.MustCompile(`^[0-9a-f]{8}$`)

func tableName(instance string) string  { return "sandboxd-" + instance }
func linkPrefix(instance string) string { return "sb" + instance + "-" }

// ourLink is the form of the names of interfaces of all daemons.
var ourLink = regexp.MustCompile(`^sb[0-9a-f]{8}-[0-9a-f]{4}$`)

// Open checks that the host can forward what n allows, and makes the daemon's table. No
// sandbox is connected yet. The caller must Close the gateway.
//
// When another program removes the table, as nft flush ruleset does, every sandbox loses
// its interface, and no other gets one. Then lost, which may be nil, is called with an
// error that says so, on a goroutine of its own.
func Open(instance string, n isolation.Network, lost func(error)) (*Gateway, error) {
	if !instanceForm.MatchString(instance) {
		return nil, fmt.Errorf("instance id %q: want 8 hexadecimal digits", instance)
	}
	ipv6, err := examine(n)
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		instance: instance, ipv6: ipv6,
		table: &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName(instance)},
	}
	w, err := newWatch(instance)
	if err != nil {
		return nil, fmt.Errorf("watch the packet filter: %w", err)
	}
	if err := g.commit(g.create); err != nil {
		w.close()
		return nil, fmt.Errorf("table of the packet filter: %w", err)
	}
	g.watch = w
	w.start(lost)
	return g, nil
}

// Close removes the interfaces that are left, and the table. Every port must be closed before.
func (g *Gateway) Close() error {
	if g.watch != nil {
		g.watch.close()
	}
	return Remove(g.instance)
}

// buffer has room for one transaction, and for the kernel's answers to it: a policy of the
// most rules has some 700 parts of less than 1 KiB, and each has an answer.
const buffer = 2 << 20

// commit makes the changes that f adds, all or none of them.
func (g *Gateway) commit(f func(*nftables.Conn) error) error {
	c, err := nftables.New(nftables.WithSockOptions(func(c *nfnetlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(buffer), c.SetReadBuffer(buffer))
	}))
	if err != nil {
		return err
	}
	if err := f(c); err != nil {
		return err
	}
	return c.Flush()
}

// create adds the table and what all sandboxes share of it. Packets that a sandbox sends
// go to the sandbox's own chain, before the host decides where they lead; what leads to
// a sandbox must belong to a connection that the sandbox has opened.
func (g *Gateway) create(c *nftables.Conn) error {
	c.CreateTable(g.table) // an error if there is one: it would be another daemon's
	g.from = &nftables.Set{Table: g.table, Name: "from", IsMap: true, KeyType: nftables.TypeIFName, DataType: nftables.TypeVerdict}
	if err := c.AddSet(g.from, nil); err != nil {
		return err
	}
	var err error
	if g.closed, err = closedSets(c, g.table); err != nil {
		return err
	}
	ours := linkPrefix(g.instance)
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, at *nftables.ChainPriority) *nftables.Chain {
		policy := nftables.ChainPolicyAccept // for what is not ours
		return c.AddChain(&nftables.Chain{Table: g.table, Name: name, Type: kind, Hooknum: hook, Priority: at, Policy: &policy})
	}
	sent := chain("sent", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityFilter)
	g.rule(c, sent, lookInterface(g.from))
	g.rule(c, sent, fromInterface(ours), drop()) // an interface without a chain
	for name, hook := range map[string]*nftables.ChainHook{"forwarded": nftables.ChainHookForward, "local": nftables.ChainHookOutput} {
		to := chain(name, nftables.ChainTypeFilter, hook, nftables.ChainPriorityFilter)
		g.rule(c, to, toInterface(ours), ctState(established|related), letThrough())
		if name == "local" { // what the kernel answers to a packet that goes nowhere
			for _, errors := range icmpErrors() {
				g.rule(c, to, toInterface(ours), errors, letThrough())
			}
		}
		g.rule(c, to, toInterface(ours), drop())
	}
	nat := chain("translated", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	g.rule(c, nat, fromInterface(ours), masquerade())
	return nil
}

// Remove removes what a daemon that is gone has left on the host. Its sandboxes must
// have ended.
func Remove(instance string) error {
	if !instanceForm.MatchString(instance) {
		return nil // no daemon with such an id has a gateway
	}
	if err := removeLinks(instance); err != nil {
		return err // what is left of them stays behind the table
	}
	c, err := nftables.New()
	if err == nil {
		err = removeTable(c, tableName(instance))
	}
	if err != nil && !unsupported(err) {
		return fmt.Errorf("remove the table of the packet filter: %w", err)
	}
	return nil
}

func removeTable(c *nftables.Conn, name string) error {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Name == name {
			c.DelTable(t)
		}
	}
	return c.Flush()
}

// removeLinks removes the interfaces that the kernel has not removed by itself.
func removeLinks(instance string) error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // others come and go, ours stay
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, linkPrefix(instance)) {
			errs = append(errs, removeLink(l))
		}
	}
	return errors.Join(errs...)
}

// removeLink removes an interface; one that is gone is no error.
func removeLink(l netlink.Link) error {
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove interface %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// unsupported reports whether err says that the kernel has no nftables.
func unsupported(err error) bool {
	for _, e := range []error{unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOENT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
