package main

import (
	"fmt"
	"net/netip"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/isolation"
)

// maxNetworkRules is the most rules that --allow takes, and that --allow-name takes.
const maxNetworkRules = 64

// rangeValue is a flag value for the range of addresses of sandboxes. It implements
// pflag.Value.
type rangeValue struct {
	p     *netip.Prefix
	check func(netip.Prefix) error
}

func (v rangeValue) Type() string   { return "CIDR" }
func (v rangeValue) String() string { return cidrOf(v.p) }
func (v rangeValue) Set(s string) error {
	p, _ := netip.ParsePrefix(s) // on failure p is the zero Prefix, which check refuses
	if err := v.check(p); err != nil {
		return err
	}
	*v.p = p
	return nil
}

// networkFlags checks that the flags of the network are consistent.
func (o *options) networkFlags() error {
	rules := len(o.policy.Allow) + len(o.policy.Names)
	switch {
	case o.function.Network == isolation.NetworkEgress && rules == 0:
		return fmt.Errorf("--network egress allows nothing by itself: add --allow CIDR or --allow-name NAME")
	case o.function.Network != isolation.NetworkEgress && rules > 0:
		return fmt.Errorf("--allow and --allow-name need --network egress")
	case o.function.Network == isolation.NetworkHost && !o.unsafeHost:
		return fmt.Errorf("--network host gives the function the network of the host, and lets every process of the host call its Runtime API; add --unsafe-host-network to allow that")
	case o.function.Network != isolation.NetworkHost && o.unsafeHost:
		return fmt.Errorf("--unsafe-host-network needs --network host")
	}
	return nil
}

func cidrOf(p *netip.Prefix) string {
	if p == nil { // pflag calls String on zero values too
		return netip.Prefix{}.String()
	}
	return p.String()
}

// networks returns the networks that the daemon offers to functions: the one of the flags,
// named by its mode.
func (o *options) networks() []daemon.Network {
	n := isolation.Network{Mode: o.function.Network, Policy: o.policy, Range4: o.settings.range4, Range6: o.settings.range6}
	return []daemon.Network{{Name: n.Mode, Network: n}}
}
