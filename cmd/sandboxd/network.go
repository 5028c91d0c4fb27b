package main

import (
	"fmt"
	"net/netip"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/isolation"
)

// maxNetworkRules bounds each of --allow and --allow-name.
const maxNetworkRules = 64

// rangeValue is a range of addresses for sandboxes.
type rangeValue struct {
	p     *netip.Prefix
	check func(netip.Prefix) error
}

func (v rangeValue) Type() string   { return "CIDR" }
func (v rangeValue) String() string { return cidrOf(v.p) }
func (v rangeValue) Set(s string) error {
	p, _ := netip.ParsePrefix(s) // what is none is refused by the check
	if err := v.check(p); err != nil {
		return err
	}
	*v.p = p
	return nil
}

// networkFlags checks that the flags of the network go together.
func (o *options) networkFlags() error {
	rules := len(o.policy.Allow) + len(o.policy.Names)
	switch {
	case o.function.Network == isolation.NetworkEgress && rules == 0:
		return fmt.Errorf("--network egress allows nothing by itself: add --allow CIDR or --allow-name NAME")
	case o.function.Network != isolation.NetworkEgress && rules > 0:
		return fmt.Errorf("--allow and --allow-name need --network egress")
	case o.function.Network == isolation.NetworkHost && !o.unsafeHost:
		return fmt.Errorf("--network host gives the function the host's own network, and whoever is on the host its Runtime API; add --unsafe-host-network if that is meant")
	case o.function.Network != isolation.NetworkHost && o.unsafeHost:
		return fmt.Errorf("--unsafe-host-network needs --network host")
	}
	return nil
}

func cidrOf(p *netip.Prefix) string {
	if p == nil { // pflag asks zero values too
		return netip.Prefix{}.String()
	}
	return p.String()
}

// networks are those that the flags allow the function: the one that it has, by its mode.
func (o *options) networks() []daemon.Network {
	n := isolation.Network{Mode: o.function.Network, Policy: o.policy, Range4: o.settings.range4, Range6: o.settings.range6}
	return []daemon.Network{{Name: n.Mode, Network: n}}
}
