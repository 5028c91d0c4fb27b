//go:build integration

package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/isolation"
)

const testInstance = "0123abcd"

// network is one with the rules given, names if they begin with a letter.
func network(t *testing.T, rules ...string) isolation.Network {
	t.Helper()
	n := isolation.Network{Mode: isolation.NetworkEgress, Range4: isolation.DefaultRange4, Range6: isolation.DefaultRange6}
	for _, text := range rules {
		if name, ok := strings.CutPrefix(text, "name "); ok {
			r, err := isolation.ParseNameRule(name)
			if err != nil {
				t.Fatal(err)
			}
			n.Policy.Names = append(n.Policy.Names, r)
			continue
		}
		r, err := isolation.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		n.Policy.Allow = append(n.Policy.Allow, r)
	}
	return n
}

func open(t *testing.T, n isolation.Network) *Gateway {
	t.Helper()
	g, err := Open(testInstance, n, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		wantNothing(t)
	})
	return g
}

// wantNothing fails the test if the host has an interface, route or table of ours.
func wantNothing(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"link"}, {"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"neigh", "show", "nud", "all"}} {
		if out := machine(t).output(args...); strings.Contains(out, "sb"+testInstance) {
			t.Errorf("ip %v shows what is left:\n%s", args, out)
		}
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) > 0 {
		t.Errorf("%d tables are left, the first is %s", len(tables), tables[0].Name)
	}
}

// attach connects a new namespace, whose ids begin at number<<16.
func attach(t *testing.T, g *Gateway, number uint32, n isolation.Network) (space, *Port) {
	t.Helper()
	s := newSpace(t)
	p, err := g.Attach(s.file, number<<16, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, p
}

// What is public is reached where a rule allows it; what is closed, the host itself and
// siblings are not, whatever wide rule there is. The host reaches all of it: the
// addresses do answer.
func TestWideRulesOpenWhatIsPublic(t *testing.T) {
	internet(t)
	h := machine(t)
	h.serve()
	n := network(t, "0.0.0.0/0", "[::/0]")
	g := open(t, n)
	s, p := attach(t, g, 0x7001, n)
	sibling, q := attach(t, g, 0x7002, n)
	sibling.serve()

	h.wantReach(append([]string{public4, public6, hostUplink4, hostUplink6}, closedAddresses...)...)
	sibling.wantReach("127.0.0.1", q.v4.String(), q.v6.String()) // it serves

	s.wantReach(public4, otherPublic4, public6, otherPublic6)
	s.wantNot(closedAddresses...)
	s.wantNot(hostUplink4, hostUplink6, "169.254.1.1", q.v4.String(), q.v6.String())
	h.wantNot(p.v4.String(), q.v4.String(), q.v6.String()) // nor does anybody come in
}

func TestRulesOpenWhatTheyName(t *testing.T) {
	internet(t)
	h := machine(t)
	h.serve()
	n := network(t, "11.1.1.0/24:7000/tcp", "10.9.0.0/16", "[2a00:1::/32]:7000", "169.254.169.254:7000/udp", "[fd00:ec2::254]:7000", hostUplink4+":7000/tcp")
	g := open(t, n)
	s, _ := attach(t, g, 0x7001, n)
	for _, tt := range []struct {
		network, addr string
		port          int
		want          bool
	}{
		{"tcp", public4, port, true}, {"udp", public4, port, false}, {"tcp", public4, otherPort, false}, {"tcp", otherPublic4, port, false},
		{"tcp", "10.9.9.9", otherPort, true}, {"udp", "10.9.9.9", port, true}, {"tcp", "192.168.9.9", port, false},
		{"tcp", public6, port, true}, {"udp", public6, port, true}, {"tcp", public6, otherPort, false}, {"tcp", otherPublic6, port, false},
		{"udp", "169.254.169.254", port, true}, {"tcp", "169.254.169.254", port, false}, {"udp", "169.254.170.2", port, false},
		{"tcp", "fd00:ec2::254", port, true}, {"tcp", "fd20:ce::254", port, false},
		{"tcp", hostUplink4, port, true}, {"tcp", hostUplink4, otherPort, false}, {"udp", hostUplink4, port, false},
	} {
		if err := s.reach(tt.network, tt.addr, tt.port, tt.want); (err == nil) != tt.want {
			t.Errorf("%s %s port %d: %v, want an answer: %v", tt.network, tt.addr, tt.port, err, tt.want)
		}
	}
}

// Addresses that a name has opened are open for its services, but not if they are closed.
func TestNamesOpenAddresses(t *testing.T) {
	internet(t)
	n := network(t, "name one.example:7000/tcp", "name two.example")
	g := open(t, n)
	s, p := attach(t, g, 0x7001, n)
	s.wantNot(public4, public6)
	a := netip.MustParseAddr
	if err := p.Allow([]int{0}, []netip.Addr{a(public4), a(public6), a("10.9.9.9"), a("169.254.169.254"), a(hostUplink4)}, time.Second); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		network, addr string
		port          int
		want          bool
	}{
		{"tcp", public4, port, true}, {"tcp", public6, port, true}, {"udp", public4, port, false}, {"tcp", public4, otherPort, false},
		{"tcp", otherPublic4, port, false}, {"tcp", "10.9.9.9", port, false}, {"tcp", "169.254.169.254", port, false}, {"tcp", hostUplink4, port, false},
	} {
		if err := s.reach(tt.network, tt.addr, tt.port, tt.want); (err == nil) != tt.want {
			t.Errorf("%s %s port %d: %v, want an answer: %v", tt.network, tt.addr, tt.port, err, tt.want)
		}
	}
	// Again, for longer, and for another service; and one that has expired in the kernel.
	p.opened[opening{0, a("11.9.9.9")}] = time.Now().Add(time.Second)
	if err := p.Allow([]int{0, 1}, []netip.Addr{a(public4), a("11.9.9.9")}, 20*time.Minute); err != nil {
		t.Fatal(err)
	}
	s.wantReach(public4)
	var many []netip.Addr
	for i := range maxNamed + 1 {
		many = append(many, netip.AddrFrom4([4]byte{12, 0, byte(i >> 8), byte(i)}))
	}
	if err := p.Allow([]int{0}, many, time.Second); err == nil {
		t.Error("more addresses were opened than there may be")
	}
	if err := p.Allow([]int{2}, []netip.Addr{a(public4)}, time.Second); err == nil {
		t.Error("a service was opened that there is not")
	}
}

// A sandbox cannot send in another's name, and cannot use what its predecessor has opened.
func TestSourcesAreOwn(t *testing.T) {
	net := internet(t)
	all := network(t, "0.0.0.0/0", "[::/0]")
	g := open(t, all)
	s, p := attach(t, g, 0x7001, all)
	_, q := attach(t, g, 0x7002, all)
	before, err := p.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	// Root of the sandbox's network namespace, which no function is, can try.
	s.ip("addr add " + q.v4.String() + "/32 dev eth0\naddr add 11.7.7.7/32 dev eth0\n-6 addr add 2a00:7::7/128 dev eth0 nodad")
	net.ip("route add 11.7.7.7/32 via " + hostUplink4 + "\n-6 route add 2a00:7::7/128 via " + hostUplink6)
	for _, from := range []string{q.v4.String(), "11.7.7.7"} {
		s.ip("route replace default via 169.254.1.1 dev eth0 onlink src " + from)
		s.wantNot(public4)
	}
	s.ip("-6 route replace default via fe80::1 dev eth0 onlink src 2a00:7::7")
	s.wantNot(public6)
	after, err := p.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	if after.AllowedPackets != before.AllowedPackets || after.DroppedPackets == before.DroppedPackets {
		t.Errorf("counters went from %+v to %+v; want drops alone", before, after)
	}
	s.ip("route replace default via 169.254.1.1 dev eth0 onlink src " + p.v4.String())
	s.wantReach(public4) // it was the source
}

func TestPredecessorsConnectionsAreForgotten(t *testing.T) {
	internet(t)
	all, none := network(t, "0.0.0.0/0"), network(t, "12.0.0.0/8")
	g := open(t, all)
	s, p := attach(t, g, 0x7001, all)
	dial := func(s space) error { return s.reachFrom(p.v4, 5555, public4) }
	s.wantReach(public4)
	if err := dial(s); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = attach(t, g, 0x7001, none)
	if err := dial(s); err == nil {
		t.Error("a new sandbox used the connection of its predecessor")
	}
}

// The counters say what passed and what did not.
func TestTraffic(t *testing.T) {
	internet(t)
	n := network(t, public4)
	g := open(t, n)
	s, p := attach(t, g, 0x7001, n)
	want := func(allowed, dropped uint64) {
		t.Helper()
		got, err := p.Traffic()
		if err != nil {
			t.Fatal(err)
		}
		const size = 20 + 8 + 4 // headers of IP and UDP, "ping"
		if got.AllowedPackets != allowed || got.DroppedPackets != dropped || got.AllowedBytes != size*allowed || got.DroppedBytes != size*dropped {
			t.Errorf("traffic %+v; want %d packets allowed and %d dropped, of %d bytes each", got, allowed, dropped, size)
		}
	}
	want(0, 0)
	machine(t).wantReach(public4, otherPublic4)
	for range 3 {
		if err := s.reach("udp", public4, port, true); err != nil {
			t.Fatal(err)
		}
	}
	want(3, 0)
	for range 2 {
		if err := s.reach("udp", otherPublic4, port, false); err == nil {
			t.Fatal("reached what is not allowed")
		}
	}
	want(3, 2)
}

// After the death of a daemon Remove finds all of it, and nothing of another's.
func TestRemoveAfterDeath(t *testing.T) {
	internet(t)
	n := network(t, "0.0.0.0/0", "[::/0]", "name one.example")
	g := open(t, n)
	attach(t, g, 0x7001, n)
	dead, err := Open("deadbeef", n, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := newSpace(t)
	if _, err := dead.Attach(s.file, 0x7002<<16, n); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing
		if err := Remove("deadbeef"); err != nil {
			t.Fatal(err)
		}
	}
	if out := machine(t).output("link"); strings.Contains(out, "sbdeadbeef") || !strings.Contains(out, "sb"+testInstance+"-7001") {
		t.Errorf("interfaces after Remove:\n%s", out)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil || len(tables) != 1 || tables[0].Name != tableName(testInstance) {
		t.Errorf("tables %v, %v; want the living daemon's alone", tables, err)
	}
}

// A program that removes the rules of all cuts sandboxes off: they must not reach the
// host for want of rules. What is left of them can be removed, and no other gets in.
func TestRulesRemovedByOthers(t *testing.T) {
	internet(t)
	machine(t).serve()
	n := network(t, "0.0.0.0/0", "[::/0]", "name one.example")
	lost := make(chan error, 1)
	g, err := Open(testInstance, n, func(err error) { lost <- err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wantNothing(t) })
	s, p := attach(t, g, 0x7001, n)
	s.wantReach(public4, public6)
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	other := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "other"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	c.DelTable(other)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	s.wantReach(public4) // another's table is its own business
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := <-lost; !strings.Contains(err.Error(), "restart sandboxd") {
		t.Errorf("%v, want an error that says what to do", err)
	}
	for strings.Contains(machine(t).output("link"), p.name) { // the test's time-out is the limit
		time.Sleep(time.Millisecond)
	}
	s.wantNot(hostUplink4, hostUplink6, public4, public6)
	if _, err := g.Attach(newSpace(t).file, 0x7002<<16, n); !errors.Is(err, errLost) {
		t.Errorf("%v, want that no sandbox is connected any more", err)
	}
	for _, close := range []func() error{p.Close, g.Close} {
		if err := close(); err != nil {
			t.Error(err)
		}
	}
}

// A look for the table of the rules takes no file more: without one, every sandbox would
// lose its egress when another program removes a table of its own.
func TestRulesAreSeenWithoutFiles(t *testing.T) {
	internet(t)
	g := open(t, network(t, "0.0.0.0/0"))
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil { // what is open stays
		t.Fatal(err)
	}
	_, control := os.Open("/dev/null")
	there, err := g.watch.look()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err != nil || !there {
		t.Errorf("the table is there: %v, %v", there, err)
	}
	if !errors.Is(control, unix.EMFILE) {
		t.Errorf("control: a file could be opened: %v", control)
	}
}

// An interface that is made while the rules go does not stay.
func TestRulesRemovedMeanwhile(t *testing.T) {
	internet(t)
	n := network(t, "0.0.0.0/0")
	g := open(t, n)
	g.watch.lost.Store(true)
	if _, err := g.Attach(newSpace(t).file, 0x7001<<16, n); !errors.Is(err, errLost) {
		t.Errorf("%v, want that the sandbox is not connected", err)
	}
}

// The largest policy there may be is put in force, and removed.
func TestManyRules(t *testing.T) {
	internet(t)
	var rules []string
	for i := range 64 {
		rules = append(rules, fmt.Sprintf("11.1.%d.0/24:%d", i, 1000+i), fmt.Sprintf("name n%d.example:%d", i, 2000+i))
	}
	n := network(t, rules...)
	g := open(t, n)
	_, p := attach(t, g, 0x7001, n)
	if len(p.named) != 64 {
		t.Errorf("%d services", len(p.named))
	}
}

// A host that does not forward, or uses the range, is told what to do.
func TestOpenExaminesTheHost(t *testing.T) {
	internet(t)
	h := machine(t)
	refused := func(n isolation.Network, want string) {
		t.Helper()
		g, err := Open(testInstance, n, nil)
		if err == nil {
			g.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
		if forwards := !strings.HasPrefix(want, "sysctl"); host.Lacks(err, host.Egress) == forwards {
			t.Errorf("%v: the host lacks egress: %v", err, forwards)
		}
	}
	n := network(t, "0.0.0.0/0")
	h.ip("link add other type veth peer name another\nlink set other up\nroute add 10.213.4.0/24 dev other")
	refused(n, "overlaps with the host's route to 10.213.4.0/24 by other; set egress-range")
	h.ip("link del other")
	h.set("ipv4/conf/up0/forwarding", "0")
	refused(n, "sysctl -w net.ipv4.conf.up0.forwarding=1")
	h.set("ipv4/conf/up0/forwarding", "1")
	h.set("ipv6/conf/all/forwarding", "0")
	refused(network(t, "[::/0]"), "sysctl -w net.ipv6.conf.")

	// Without IPv6 on the host a sandbox has IPv4 alone.
	g := open(t, n)
	s, p := attach(t, g, 0x7001, n)
	s.wantReach(public4)
	s.wantNot(public6)
	if out := s.output("-6", "addr", "show", "scope", "global"); p.v6.IsValid() || strings.Contains(out, "inet6") {
		t.Errorf("the sandbox has an IPv6 address: %s", out)
	}
}
