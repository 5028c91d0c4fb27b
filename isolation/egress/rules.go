package egress

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// States of a connection, as bits of the expression ct (linux/netfilter/nf_conntrack_common.h).
const (
	established = expr.CtStateBitESTABLISHED
	related     = expr.CtStateBitRELATED
	fresh       = expr.CtStateBitNEW
)

// Of linux/netfilter/nf_tables.h.
const (
	rejectICMPX     = 2 // NFT_REJECT_ICMPX_UNREACH: the form of the packet's own family
	adminProhibited = 3 // NFT_REJECT_ICMPX_ADMIN_PROHIBITED
	limitOver       = 1 // NFT_CONNLIMIT_F_INV
	counterObject   = 1 // NFT_OBJECT_COUNTER
)

// rule adds a rule of some parts to a chain.
func (g *Gateway) rule(c *nftables.Conn, chain *nftables.Chain, parts ...[]expr.Any) {
	c.AddRule(&nftables.Rule{Table: g.table, Chain: chain, Exprs: slices.Concat(parts...)})
}

func load(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }
func is(data ...byte) expr.Any       { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
func isNot(data ...byte) expr.Any    { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }

// fromInterface matches what came in by an interface whose name begins so.
func fromInterface(prefix string) []expr.Any {
	return []expr.Any{load(expr.MetaKeyIIFNAME), is([]byte(prefix)...)}
}

// toInterface matches what leaves by an interface whose name begins so.
func toInterface(prefix string) []expr.Any {
	return []expr.Any{load(expr.MetaKeyOIFNAME), is([]byte(prefix)...)}
}

// lookInterface goes to the chain that the map has for the interface a packet came by.
func lookInterface(m *nftables.Set) []expr.Any {
	return []expr.Any{load(expr.MetaKeyIIFNAME), &expr.Lookup{SourceRegister: 1, SetName: m.Name, SetID: m.ID, IsDestRegSet: true}}
}

// interfaceKey is a name as the map has it.
func interfaceKey(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}

func letThrough() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any       { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func reject() []expr.Any     { return []expr.Any{&expr.Reject{Type: rejectICMPX, Code: adminProhibited}} }
func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func count(counter string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: counterObject, Name: counter}}
}

// ctState matches packets of connections in one of the states.
func ctState(bits uint32) []expr.Any { return append(loadState(bits), isNot(0, 0, 0, 0)) }

func loadState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
	}
}

// family matches packets of IPv4 or IPv6.
func family(is4 bool) []expr.Any {
	if is4 {
		return []expr.Any{load(expr.MetaKeyNFPROTO), is(unix.NFPROTO_IPV4)}
	}
	return []expr.Any{load(expr.MetaKeyNFPROTO), is(unix.NFPROTO_IPV6)}
}

// Offsets of the addresses in the headers of IPv4 (RFC 791) and IPv6 (RFC 8200).
const (
	source4, destination4 = 12, 16
	source6, destination6 = 8, 24
)

// loadAddress reads an address of a packet, whose family was matched before.
func loadAddress(is4, source bool) []expr.Any {
	p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destination4, Len: 4}
	switch {
	case is4 && source:
		p.Offset = source4
	case !is4 && source:
		p.Offset, p.Len = source6, 16
	case !is4:
		p.Offset, p.Len = destination6, 16
	}
	return append(family(is4), p)
}

// toPrefix matches packets to a range of addresses.
func toPrefix(p netip.Prefix) []expr.Any {
	parts := loadAddress(p.Addr().Is4(), false)
	length := uint32(p.Addr().BitLen() / 8)
	mask := make([]byte, length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(parts,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		is(p.Addr().AsSlice()...))
}

// toSet matches packets to an address of a set.
func toSet(s *nftables.Set, is4 bool) []expr.Any {
	return append(loadAddress(is4, false), &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID})
}

// services are the ways in which a packet can be one to s: one for each protocol if a
// port is named without one.
func services(s isolation.Service) [][]expr.Any {
	numbers := map[string][]byte{"tcp": {unix.IPPROTO_TCP}, "udp": {unix.IPPROTO_UDP}, "": {unix.IPPROTO_TCP, unix.IPPROTO_UDP}}[s.Protocol]
	if s.Port == 0 && s.Protocol == "" {
		return [][]expr.Any{nil}
	}
	var ways [][]expr.Any
	for _, n := range numbers {
		way := []expr.Any{load(expr.MetaKeyL4PROTO), is(n)}
		if s.Port != 0 { // the destination's port is at the same place in both
			way = append(way, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				is(binary.BigEndian.AppendUint16(nil, s.Port)...))
		}
		ways = append(ways, way)
	}
	return ways
}

// toOthers matches packets that do not go to one address elsewhere: to an address of the
// host's own, to many, or to none.
func toOthers() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		isNot(binary.NativeEndian.AppendUint32(nil, unix.RTN_UNICAST)...),
	}
}

// tooMany matches packets of connections beyond a number of them.
func tooMany(n uint32) []expr.Any { return []expr.Any{&expr.Connlimit{Count: n, Flags: limitOver}} }

// icmpErrors are the ways in which a packet can say that another did not arrive:
// "unreachable" and "time exceeded" of ICMP, these and "too big" of ICMPv6.
func icmpErrors() [][]expr.Any {
	return [][]expr.Any{
		icmp(true, unix.IPPROTO_ICMP, 3), icmp(true, unix.IPPROTO_ICMP, 11),
		icmp(false, unix.IPPROTO_ICMPV6, 1), icmp(false, unix.IPPROTO_ICMPV6, 2), icmp(false, unix.IPPROTO_ICMPV6, 3),
	}
}

// icmp matches messages of a type.
func icmp(is4 bool, protocol, kind byte) []expr.Any {
	return append(family(is4), load(expr.MetaKeyL4PROTO), is(protocol),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, is(kind))
}

// matches are the rules that one test of a sandbox comes to: a packet that matches one
// of them passes the test.
func (p *Port) matches(f isolation.Filter) ([][]expr.Any, error) {
	switch f.Test {
	case isolation.All:
		return [][]expr.Any{nil}, nil
	case isolation.Spoofed:
		ways := [][]expr.Any{append(loadAddress(true, true), isNot(p.v4.AsSlice()...)), family(false)}
		if p.v6.IsValid() {
			ways[1] = append(loadAddress(false, true), isNot(p.v6.AsSlice()...))
		}
		return ways, nil
	case isolation.Established:
		return [][]expr.Any{ctState(established | related)}, nil
	case isolation.Untracked:
		return [][]expr.Any{append(loadState(fresh), is(0, 0, 0, 0))}, nil
	case isolation.Excess:
		return [][]expr.Any{tooMany(isolation.MaxConnections)}, nil
	case isolation.Local:
		return [][]expr.Any{toOthers()}, nil
	case isolation.ToClosed:
		return [][]expr.Any{toSet(p.gateway.closed.v4, true), toSet(p.gateway.closed.v6, false)}, nil
	case isolation.To:
		return each(toPrefix(f.Prefix), services(f.Service)), nil
	case isolation.ToNamed:
		s := p.named[f.Named]
		return slices.Concat(each(toSet(s.v4, true), services(f.Service)), each(toSet(s.v6, false), services(f.Service))), nil
	}
	return nil, fmt.Errorf("unknown test %d of the packet filter", f.Test)
}

// each puts first before every one of the ways.
func each(first []expr.Any, ways [][]expr.Any) [][]expr.Any {
	var all [][]expr.Any
	for _, way := range ways {
		all = append(all, slices.Concat(first, way))
	}
	return all
}

// closedSets adds the sets of isolation.ClosedRanges.
func closedSets(c *nftables.Conn, t *nftables.Table) (sets, error) {
	s := sets{
		v4: &nftables.Set{Table: t, Name: "closed4", Interval: true, Constant: true, KeyType: nftables.TypeIPAddr},
		v6: &nftables.Set{Table: t, Name: "closed6", Interval: true, Constant: true, KeyType: nftables.TypeIP6Addr},
	}
	var e4, e6 []nftables.SetElement
	for _, r := range isolation.ClosedRanges {
		if r.Prefix.Addr().Is4() {
			e4 = append(e4, interval(r.Prefix)...)
		} else {
			e6 = append(e6, interval(r.Prefix)...)
		}
	}
	if err := c.AddSet(s.v4, e4); err != nil {
		return s, err
	}
	return s, c.AddSet(s.v6, e6)
}

// interval is a range as the elements of a set: its first address, and the first after
// it unless it ends with the last that there is.
func interval(p netip.Prefix) []nftables.SetElement {
	first := p.Addr().AsSlice()
	next := slices.Clone(first)
	carry := p.Bits() - 1 // the last bit of the prefix, to which one is added
	for ; carry >= 0; carry-- {
		bit := byte(0x80 >> (carry % 8))
		next[carry/8] ^= bit
		if next[carry/8]&bit != 0 {
			break
		}
	}
	elements := []nftables.SetElement{{Key: first}}
	if carry >= 0 {
		elements = append(elements, nftables.SetElement{Key: next, IntervalEnd: true})
	}
	return elements
}
