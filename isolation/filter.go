package isolation

import (
	"fmt"
	"net/netip"
)

// Closed is a range of addresses that a wider rule does not open.
type Closed struct {
	Prefix netip.Prefix
	Why    string
}

// ClosedRanges are the ranges that only rules within them open: IANA's special-purpose
// registries, and metadata services of clouds that lie in none of these.
var ClosedRanges = []Closed{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared by carriers; metadata of Alibaba Cloud"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata of Azure"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local; metadata of AWS, Azure and GCP, and credentials of ECS"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private"},
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments; metadata of Oracle Cloud"},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), "6to4 relays"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarks"},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved, and broadcast"},
	{netip.MustParsePrefix("::/96"), "unspecified, loopback, and IPv4 in a form of old"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4 as IPv6"},
	{netip.MustParsePrefix("64:ff9b::/96"), "IPv4 by NAT64, private ranges too"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "IPv4 by local NAT64"},
	{netip.MustParsePrefix("100::/64"), "discarded"},
	{netip.MustParsePrefix("2001::/23"), "protocol assignments, Teredo among them"},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation"},
	{netip.MustParsePrefix("2002::/16"), "IPv4 by 6to4, private ranges too"},
	{netip.MustParsePrefix("3fff::/20"), "documentation"},
	{netip.MustParsePrefix("5f00::/16"), "segment routing"},
	{netip.MustParsePrefix("fc00::/7"), "private; metadata of AWS (fd00:ec2::254) and GCP (fd20:ce::254)"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("fec0::/10"), "site-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// unreachable are ranges that no rule can name: what the kernel keeps to one host, or
// sends to many.
var unreachable = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("::ffff:0:0/96"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// MaxConnections is how many connections a sandbox may have in the host's table of
// connections at once, so that none fills it for the others.
const MaxConnections = 2048

// Test is what a Filter looks at.
type Test int

// The tests of a packet that a sandbox sends.
const (
	All         Test = iota // every packet
	Spoofed                 // its source is not the sandbox's own address
	Established             // it belongs to a connection that was let through
	Untracked               // it belongs to none and opens none
	Excess                  // it opens a connection beyond MaxConnections
	Local                   // it goes to the host itself, or to many
	ToClosed                // it goes to one of ClosedRanges
	To                      // it goes to Prefix and Service
	ToNamed                 // it goes to Service at an address found for a name: that of number Named in Policy.Services
)

// Verdict is what becomes of a packet.
type Verdict int

// The verdicts.
const (
	Drop   Verdict = iota // the sender is not told
	Reject                // the sender is told that it is forbidden
	Accept
)

// Filter is one step of the packet filter on the host's side of a sandbox's interface.
// The first whose test holds decides.
type Filter struct {
	Test    Test
	Verdict Verdict
	Prefix  netip.Prefix // with To
	Service Service      // with To and ToNamed
	Named   int          // with ToNamed
}

func (f Filter) String() string {
	test := [...]string{"all", "spoofed source", "established", "untracked", fmt.Sprintf("more than %d connections", MaxConnections),
		"to the host itself", "to a closed range", "to " + Rule{f.Prefix, f.Service}.String(),
		fmt.Sprintf("to a named address%v", f.Service)}[f.Test]
	return test + ": " + [...]string{"drop", "reject", "accept"}[f.Verdict]
}

// Filters are the steps that every packet passes which a sandbox with NetworkEgress sends,
// in order.
func (n Network) Filters() []Filter {
	list := []Filter{
		{Test: Spoofed, Verdict: Drop},
		{Test: Established, Verdict: Accept},
		{Test: Untracked, Verdict: Drop},
		{Test: Excess, Verdict: Drop},
		{Test: To, Verdict: Reject, Prefix: n.Range4},
		{Test: To, Verdict: Reject, Prefix: n.Range6},
	}
	var closed, open []Filter
	for _, r := range n.Policy.Allow {
		f := Filter{Test: To, Verdict: Accept, Prefix: r.Prefix, Service: r.Service}
		switch {
		case r.Prefix.IsSingleIP(): // the host's own, if it is that
			list = append(list, f)
		case inClosed(r.Prefix):
			closed = append(closed, f)
		default:
			open = append(open, f)
		}
	}
	list = append(list, Filter{Test: Local, Verdict: Reject})
	list = append(list, closed...)
	list = append(list, Filter{Test: ToClosed, Verdict: Reject})
	list = append(list, open...)
	for i, s := range n.Policy.Services() {
		list = append(list, Filter{Test: ToNamed, Verdict: Accept, Service: s, Named: i})
	}
	return append(list, Filter{Test: All, Verdict: Reject})
}

// inClosed reports whether p lies in one of ClosedRanges.
func inClosed(p netip.Prefix) bool {
	for _, c := range ClosedRanges {
		if within(p, c.Prefix) {
			return true
		}
	}
	return false
}
