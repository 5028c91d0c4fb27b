package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/nftables"
	nfnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/isolation"
)

// examine checks that the host forwards what n allows and does not use n's ranges itself.
// It tells whether IPv6 is forwarded: if not, sandboxes have none.
func examine(n isolation.Network) (ipv6 bool, err error) {
	if err := rangeIsFree(n.Range4, "egress-range", unix.AF_INET); err != nil {
		return false, err
	}
	if err := rangeIsFree(n.Range6, "egress-range6", unix.AF_INET6); err != nil {
		return false, err
	}
	missing4, err := notForwarding(unix.AF_INET)
	if err != nil {
		return false, err
	}
	missing6, err := notForwarding(unix.AF_INET6)
	if err != nil {
		return false, err
	}
	if missing4 != nil && (wants(n.Policy, true) || len(n.Policy.Names) > 0) {
		return false, missing4
	}
	if missing6 != nil && wants(n.Policy, false) {
		return false, missing6
	}
	return missing6 == nil, nil
}

// wants reports whether a rule of p names addresses of the family.
func wants(p isolation.Policy, is4 bool) bool {
	for _, r := range p.Allow {
		if r.Prefix.Addr().Is4() == is4 {
			return true
		}
	}
	return false
}

// rangeIsFree checks that no route of the host leads to a part of p, those to sandboxes
// left out.
func rangeIsFree(p netip.Prefix, setting string, family int) error {
	routes, err := listRoutes(family)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue // the default route
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if to := netip.PrefixFrom(addr.Unmap(), bits); !ok || bits == 0 || !to.Overlaps(p) {
			continue
		}
		name := "another interface"
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			name = l.Attrs().Name
		}
		if !ourLink.MatchString(name) {
			return fmt.Errorf("the range %v of sandboxes overlaps with the host's route to %v by %s; set %s to a private range that is free", p, r.Dst, name, setting)
		}
	}
	return nil
}

// listRoutes lists the routes of the host's main table.
func listRoutes(family int) ([]netlink.Route, error) {
	for {
		routes, err := netlink.RouteList(nil, family)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue // they changed meanwhile
		}
		if errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, nil // a host without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list the host's routes: %w", err)
		}
		return routes, nil
	}
}

// notForwarding returns what the host lacks to forward packets of the family, nil if it
// lacks nothing. Replies come in by the interface of the default
// route, and the kernel forwards what comes in by an interface only if it is told to:
// sandboxd sets that for the interfaces of sandboxes, and for no other.
func notForwarding(family int) (*host.Unsupported, error) {
	version := map[int]string{unix.AF_INET: "ipv4", unix.AF_INET6: "ipv6"}[family]
	// Writing "all" sets every interface, later ones too; IPv6 asks for "all" alone, or for
	// force_forwarding of an interface from Linux 6.17 on.
	if isOn(version, "all", "forwarding") {
		return nil, nil
	}
	routes, err := listRoutes(family)
	if err != nil {
		return nil, err
	}
	own := map[string]string{"ipv4": "forwarding", "ipv6": "force_forwarding"}[version]
	found := false
	for _, r := range routes {
		if r.Dst != nil {
			if bits, _ := r.Dst.Mask.Size(); bits != 0 {
				continue
			}
		}
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // one of several next hops, or it has just gone
		}
		found = true
		if name := l.Attrs().Name; !isOn(version, name, own) {
			fix := fmt.Sprintf("sysctl -w net.%s.conf.all.forwarding=1", version)
			if _, err := os.Stat(setting(version, name, own)); err == nil {
				fix = fmt.Sprintf("sysctl -w net.%s.conf.%s.%s=1", version, strings.ReplaceAll(name, ".", "/"), own)
			}
			return &host.Unsupported{Feature: host.Egress, Fix: fix,
				Need: fmt.Sprintf("the host does not forward what comes in by %s, such as the replies to sandboxes", name)}, nil
		}
	}
	if !found {
		return &host.Unsupported{Feature: host.Egress, Fix: fmt.Sprintf("sysctl -w net.%s.conf.all.forwarding=1", version),
			Need: fmt.Sprintf("the host has no default route for %s and does not forward", version)}, nil
	}
	return nil, nil
}

// setting is the file of a setting of one interface, or of "all".
func setting(version, name, key string) string {
	return filepath.Join("/proc/sys/net", version, "conf", name, key)
}

func isOn(version, name, key string) bool {
	b, err := os.ReadFile(setting(version, name, key))
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

// Of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctDelete       = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
	ctTupleOrig    = 1
	ctTupleIP      = 1
	ctIPv4Source   = 1
	ctIPv6Source   = 3
	ctFilter       = 25
	ctFilterOrig   = 1
	ctFilterSource = 1 << 0 // CTA_FILTER_F_CTA_IP_SRC
)

// forgetConnections takes the connections that a has opened out of the host's table.
func forgetConnections(a netip.Addr) error {
	if !a.IsValid() {
		return nil
	}
	family, attribute := byte(unix.AF_INET), uint16(ctIPv4Source)
	if a.Is6() {
		family, attribute = unix.AF_INET6, ctIPv6Source
	}
	e := nfnetlink.NewAttributeEncoder()
	e.Nested(ctTupleOrig, func(e *nfnetlink.AttributeEncoder) error {
		e.Nested(ctTupleIP, func(e *nfnetlink.AttributeEncoder) error {
			e.Bytes(attribute, a.AsSlice())
			return nil
		})
		return nil
	})
	e.Nested(ctFilter, func(e *nfnetlink.AttributeEncoder) error {
		e.Bytes(ctFilterOrig, binary.NativeEndian.AppendUint32(nil, ctFilterSource))
		return nil
	})
	attributes, err := e.Encode()
	if err != nil {
		return err
	}
	c, err := nfnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("table of connections: %w", err)
	}
	defer c.Close()
	_, err = c.Execute(nfnetlink.Message{
		Header: nfnetlink.Header{Type: ctDelete, Flags: nfnetlink.Request | nfnetlink.Acknowledge},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attributes...),
	})
	if err != nil {
		return fmt.Errorf("forget connections of %v: %w", a, err)
	}
	return nil
}

// Check tries, between network namespaces of its own, everything that connecting a
// sandbox takes of the kernel, and then examines the host. Its error says what is
// missing and what to do; it is a [host.Unsupported] if the kernel lacks a part or the host
// does not forward. It leaves nothing behind.
func Check() error {
	n := isolation.Network{
		Mode: isolation.NetworkEgress, Range4: isolation.DefaultRange4, Range6: isolation.DefaultRange6,
		Policy: isolation.Policy{Allow: []isolation.Rule{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}}, Names: []isolation.NameRule{{Name: "*"}}},
	}
	tried := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and the namespaces with it
		tried <- try(n)
	}()
	if err := <-tried; err != nil {
		return untried(err)
	}
	_, err := examine(n)
	return err
}

// untried is the error of a host where the trial has failed with err.
func untried(err error) error {
	const fix = "load the kernel's modules for nftables and veth: modprobe -a nf_tables nft_ct nft_masq nft_fib_inet nft_reject_inet nft_connlimit nf_conntrack_netlink veth"
	if unsupported(err) {
		return &host.Unsupported{Feature: host.Egress, Need: "the kernel cannot connect a sandbox to a network", Err: err, Fix: fix}
	}
	return fmt.Errorf("connect a sandbox to a network: %w; %s", err, fix)
}

// try connects a network namespace to another. The thread is lost.
func try(n isolation.Network) error {
	var inside *os.File
	for range 2 { // the first is the sandbox's, the second plays the host
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		if inside == nil {
			var err error
			if inside, err = os.Open("/proc/thread-self/ns/net"); err != nil {
				return err
			}
			defer inside.Close()
		}
	}
	const instance = "00000000"
	g := &Gateway{instance: instance, ipv6: true, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName(instance)}}
	if err := g.commit(g.create); err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	p, err := g.Attach(inside, isolation.IDCount, n)
	if err != nil {
		return err
	}
	return errors.Join(p.Close(), g.Close())
}
