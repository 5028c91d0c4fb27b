package isolation

import (
	"errors"
	"fmt"
	"net/netip"
)

// The networks that a sandbox can have.
const (
	NetworkNone   = "none"   // loopback only
	NetworkEgress = "egress" // an interface of its own, through which it reaches what its policy allows
	NetworkHost   = "host"   // the daemon's network namespace: unsafe
)

// Network says what a sandbox can reach. The zero value is NetworkNone.
type Network struct {
	Mode   string       // one of the constants; "" means NetworkNone
	Policy Policy       // with NetworkEgress
	Range4 netip.Prefix // where the sandboxes' addresses come from, with NetworkEgress
	Range6 netip.Prefix
}

// The ranges of the sandboxes' addresses unless told otherwise: one of the private
// ones that are seldom used, and a unique local one (RFC 4193).
var (
	DefaultRange4 = netip.MustParsePrefix("10.213.0.0/16")
	DefaultRange6 = netip.MustParsePrefix("fd5b:d5ba:1ac5:1::/64")
)

// Addresses returns the addresses of the sandbox whose host ids begin at idBase. Id
// ranges are leased among all daemons of the host, and the upper half of their first
// id is different for each: the lease of the ids is that of the addresses too.
func (n Network) Addresses(idBase uint32) (v4, v6 netip.Addr) {
	a4, a6 := n.Range4.Masked().Addr().As4(), n.Range6.Masked().Addr().As16()
	a4[2], a4[3] = byte(idBase>>24), byte(idBase>>16)
	a6[14], a6[15] = a4[2], a4[3]
	return netip.AddrFrom4(a4), netip.AddrFrom16(a6)
}

// CheckRange4 reports what makes p unusable as Range4: addresses are 16 bits of it.
func CheckRange4(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is4() || p.Bits() > 16 || !p.Addr().IsPrivate() || p != p.Masked() {
		return errors.New("must be a private IPv4 range of /16 or larger, such as " + DefaultRange4.String())
	}
	return nil
}

// CheckRange6 reports what makes p unusable as Range6.
func CheckRange6(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is6() || p.Bits() > 112 || !p.Addr().IsPrivate() || p != p.Masked() {
		return errors.New("must be a unique local IPv6 range (fc00::/7) of /112 or larger, such as " + DefaultRange6.String())
	}
	return nil
}

// validate reports the first thing that makes n unusable.
func (n Network) validate() error {
	switch n.Mode {
	case "", NetworkNone, NetworkHost:
		return nil
	case NetworkEgress:
		if err := CheckRange4(n.Range4); err != nil {
			return fmt.Errorf("range %v %w", n.Range4, err)
		}
		if err := CheckRange6(n.Range6); err != nil {
			return fmt.Errorf("range %v %w", n.Range6, err)
		}
		return n.Policy.validate()
	}
	return fmt.Errorf("unknown network %q", n.Mode)
}

// Traffic is what passed between a sandbox with NetworkEgress and the network, as the
// packet filter counted it. Replies are not counted.
type Traffic struct {
	IPv4           netip.Addr `json:"ipv4"`
	IPv6           netip.Addr `json:"ipv6,omitzero"` // zero if the host forwards no IPv6
	AllowedPackets uint64     `json:"allowed_packets"`
	AllowedBytes   uint64     `json:"allowed_bytes"`
	DroppedPackets uint64     `json:"dropped_packets"`
	DroppedBytes   uint64     `json:"dropped_bytes"`
}
