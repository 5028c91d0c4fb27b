package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/egress/dns"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// hostResolvConf names the host's name servers.
const hostResolvConf = "/etc/resolv.conf"

// maxNetworkRules bounds each of --allow and --allow-name.
const maxNetworkRules = 64

// ruleValue collects rules by address or by name.
type ruleValue[T fmt.Stringer] struct {
	rules *[]T
	parse func(string) (T, error)
	form  string
}

func (v ruleValue[T]) Type() string { return v.form }

func (v ruleValue[T]) String() string {
	var list []string
	for _, r := range deref(v.rules) {
		list = append(list, r.String())
	}
	return strings.Join(list, ",")
}

func (v ruleValue[T]) Set(s string) error {
	r, err := v.parse(s)
	if err != nil {
		return err
	}
	if len(*v.rules) == maxNetworkRules {
		return fmt.Errorf("at most %d are allowed", maxNetworkRules)
	}
	*v.rules = append(*v.rules, r)
	return nil
}

// repeatable says that the configuration file may have a list.
func (v ruleValue[T]) repeatable() {}

// rangeValue is a range of addresses for sandboxes.
type rangeValue struct {
	p     *netip.Prefix
	check func(netip.Prefix) error
}

func (v rangeValue) Type() string   { return "CIDR" }
func (v rangeValue) String() string { return deref(v.p).String() }
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
	case o.network == isolation.NetworkEgress && rules == 0:
		return fmt.Errorf("--network egress allows nothing by itself: add --allow CIDR or --allow-name NAME")
	case o.network != isolation.NetworkEgress && rules > 0:
		return fmt.Errorf("--allow and --allow-name need --network egress")
	case o.network == isolation.NetworkHost && !o.unsafeHost:
		return fmt.Errorf("--network host gives the function the host's own network, and whoever is on the host its Runtime API; add --unsafe-host-network if that is meant")
	case o.network != isolation.NetworkHost && o.unsafeHost:
		return fmt.Errorf("--unsafe-host-network needs --network host")
	}
	return nil
}

// networkOf says what the function's sandboxes can reach.
func networkOf(o *options) isolation.Network {
	return isolation.Network{Mode: o.network, Policy: o.policy, Range4: o.settings.range4, Range6: o.settings.range6}
}

// upstream connects to a name server of the host. See privsep.Config.
func upstream(ctx context.Context, network string, server int) (net.Conn, error) {
	return dns.DialHost(ctx, hostResolvConf, network, server)
}

// newResolver makes the resolver of a sandbox, nil if it has nothing to look up.
func newResolver(client *privsep.Client, box *privsep.Box, policy isolation.Policy) *dns.Resolver {
	if udp, _ := box.Lookups(); udp == nil {
		return nil
	}
	return dns.New(dns.Config{Match: policy.Match, Open: box.Allow, Dial: client.Upstream})
}

// serveLookups answers the sandbox's lookups until ctx ends.
func (s *sandbox) serveLookups(ctx context.Context) error {
	if s.resolver == nil {
		return nil
	}
	udp, tcp := s.box.Lookups()
	return s.resolver.Serve(ctx, udp, tcp)
}

// networkInfo is what the control API tells of a sandbox's network.
type networkInfo struct {
	Mode   string             `json:"mode"`
	Unsafe bool               `json:"unsafe,omitempty"` // it is the host's
	Allow  []string           `json:"allow,omitempty"`  // rules by address and by name
	Egress *isolation.Traffic `json:"egress,omitempty"`

	LookupsAnswered uint64 `json:"lookups_answered,omitempty"`
	LookupsRefused  uint64 `json:"lookups_refused,omitempty"`
}

// networkInfo reads the counters.
func (s *sandbox) networkInfo() networkInfo {
	n := s.factory.network
	info := networkInfo{Mode: n.Mode, Unsafe: n.Mode == isolation.NetworkHost}
	if n.Mode != isolation.NetworkEgress {
		return info
	}
	for _, r := range n.Policy.Allow {
		info.Allow = append(info.Allow, r.String())
	}
	for _, r := range n.Policy.Names {
		info.Allow = append(info.Allow, r.String())
	}
	if t, err := s.box.Traffic(); err == nil { // a sandbox that is being removed has none
		info.Egress = &t
	}
	info.LookupsAnswered, info.LookupsRefused = s.resolver.Lookups()
	return info
}

// String is the line of inspect.
func (n networkInfo) String() string {
	switch n.Mode {
	case isolation.NetworkHost:
		return "the host's own (UNSAFE)"
	case isolation.NetworkEgress:
	default:
		return "loopback only"
	}
	line := "egress to " + printable(strings.Join(n.Allow, " "))
	if t := n.Egress; t != nil {
		addresses := []string{printable(t.IPv4.String())}
		if t.IPv6.IsValid() {
			addresses = append(addresses, printable(t.IPv6.String()))
		}
		line += fmt.Sprintf("\n         from %s; sent %d packets (%d bytes), dropped %d (%d bytes); lookups: %d answered, %d refused",
			strings.Join(addresses, " and "), t.AllowedPackets, t.AllowedBytes, t.DroppedPackets, t.DroppedBytes,
			n.LookupsAnswered, n.LookupsRefused)
	}
	return line
}
