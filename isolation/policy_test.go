package isolation

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseRule(t *testing.T) {
	for _, tt := range []struct{ text, want, err string }{
		{"93.184.216.0/24", "93.184.216.0/24", ""},
		{"93.184.216.34", "93.184.216.34/32", ""},
		{"93.184.216.34:443/tcp", "93.184.216.34/32:443/tcp", ""},
		{"0.0.0.0/0:53/udp", "0.0.0.0/0:53/udp", ""},
		{"10.0.0.0/8/udp", "10.0.0.0/8/udp", ""},
		{"[2606:2800::/32]:443", "[2606:2800::/32]:443", ""},
		{"[2606:2800::1]", "[2606:2800::1/128]", ""},
		{"[::/0]/tcp", "[::/0]/tcp", ""},
		{"169.254.169.254:80", "169.254.169.254/32:80", ""},
		{"", "", "must be CIDR"},
		{"example.com:443", "", "must be CIDR"},
		{"2606:2800::1", "", "must be CIDR"}, // where does the port begin?
		{"[10.0.0.0/8]", "", "must be CIDR"},
		{"[2606:2800::/32", "", "must be CIDR"},
		{"[fe80::1%eth0]", "", "must be CIDR"},
		{"10.0.0.0/33", "", "must be CIDR"},
		{"10.0.0.0/8:0", "", "port must be a number"},
		{"10.0.0.0/8:65536", "", "port must be a number"},
		{"10.0.0.0/8:", "", "port must be a number"},
		{"[::/0]x443", "", "port must be a number"},
		{"10.0.0.0/8/sctp", "", "must be CIDR"},
		{"10.1.2.3/8", "", "bits beyond its length"},
		{"127.0.0.1", "", "no rule can open"},
		{"[::1]:80", "", "no rule can open"},
		{"[::ffff:10.0.0.1]", "", "no rule can open"},
		{"224.0.0.1", "", "no rule can open"},
	} {
		got, err := ParseRule(tt.text)
		if tt.err == "" && (err != nil || got.String() != tt.want) {
			t.Errorf("%q: %v, %v; want %s", tt.text, got, err, tt.want)
		}
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: %v, want an error with %q", tt.text, err, tt.err)
		}
	}
}

func TestParseNameRule(t *testing.T) {
	for _, tt := range []struct {
		text string
		want string // "" if it is refused
	}{
		{"example.com", "example.com"},
		{"Example.COM.:443/tcp", "example.com:443/tcp"},
		{"*.example.com/udp", "*.example.com/udp"},
		{"*", "*"},
		{"_service.x-1.example", "_service.x-1.example"},
		{"", ""}, {".", ""}, {"a..b", ""}, {"-a.example", ""}, {"*example.com", ""}, {"a.*.example", ""},
		{"192.0.2.1", ""}, {"example.com:http", ""}, {"exa mple.com", ""},
		{strings.Repeat("a", 64) + ".example", ""},
		{strings.Repeat("a.", 127) + "a", ""},
	} {
		got, err := ParseNameRule(tt.text)
		if tt.want == "" && err == nil || tt.want != "" && (err != nil || got.String() != tt.want) {
			t.Errorf("%q: %v, %v; want %q", tt.text, got, err, tt.want)
		}
	}
}

func examplePolicy(t *testing.T) Policy {
	t.Helper()
	var p Policy
	for _, text := range []string{"0.0.0.0/0:443/tcp", "10.1.0.0/16", "169.254.169.254:80/tcp", "[2606:2800::/32]:443", "[fd00:1::/64]/udp", "192.168.7.5:5432/tcp"} {
		r, err := ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		p.Allow = append(p.Allow, r)
	}
	for _, text := range []string{"example.com:443/tcp", "*.example.com:443/tcp", "*.example.org"} {
		r, err := ParseNameRule(text)
		if err != nil {
			t.Fatal(err)
		}
		p.Names = append(p.Names, r)
	}
	return p
}

func TestNamesThatMatch(t *testing.T) {
	p := examplePolicy(t)
	for name, want := range map[string][]int{
		"example.com": {0}, "a.example.com": {0}, "a.b.example.com": {0}, "x.example.org": {1},
		"example.org": nil, "notexample.com": nil, ".example.com": nil, "example.com.evil.net": nil, "": nil,
	} {
		if got := p.Match(name); !slices.Equal(got, want) {
			t.Errorf("%q: services %v, want %v", name, got, want)
		}
	}
	if got := (NameRule{Name: "*"}).matches("any.name"); !got {
		t.Error("* does not match any.name")
	}
}

// The golden file is what a reviewer reads: every change of what sandboxes may reach
// shows in it. `go test ./isolation -update` writes it anew.
func TestFiltersGolden(t *testing.T) {
	n := Network{Mode: NetworkEgress, Policy: examplePolicy(t), Range4: DefaultRange4, Range6: DefaultRange6}
	var b bytes.Buffer
	for _, f := range n.Filters() {
		b.WriteString(f.String() + "\n")
	}
	b.WriteString("\nclosed:\n")
	for _, c := range ClosedRanges {
		b.WriteString(c.Prefix.String() + "  " + c.Why + "\n")
	}
	file := filepath.Join("testdata", "filters.txt")
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("filters differ from %s; if that is meant, run go test ./isolation -update and review the difference:\n%s", file, b.Bytes())
	}
}

// decide is what the filters say of a new connection, by reading them as the packet
// filter does.
func decide(n Network, to string, port uint16, protocol string, local bool) Verdict {
	dst := netip.MustParseAddr(to)
	for _, f := range n.Filters() {
		var holds bool
		switch f.Test {
		case All:
			holds = true
		case Local:
			holds = local
		case ToClosed:
			holds = slices.ContainsFunc(ClosedRanges, func(c Closed) bool { return c.Prefix.Contains(dst) })
		case To:
			holds = f.Prefix.Contains(dst) && (f.Service.Port == 0 || f.Service.Port == port) && (f.Service.Protocol == "" || f.Service.Protocol == protocol)
		case Spoofed, Established, Untracked, Excess, ToNamed: // of no such connection
		}
		if holds {
			return f.Verdict
		}
	}
	return Drop
}

// What is closed stays so whatever wide rule there is; what a rule names is open.
func TestFiltersDecide(t *testing.T) {
	n := Network{Mode: NetworkEgress, Policy: examplePolicy(t), Range4: DefaultRange4, Range6: DefaultRange6}
	all := n
	all.Policy = Policy{Allow: []Rule{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}, {Prefix: netip.MustParsePrefix("::/0")}}}
	sibling := n
	sibling.Policy = Policy{Allow: []Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("10.213.112.7/32")}}}
	for _, tt := range []struct {
		n        Network
		to       string
		port     uint16
		protocol string
		local    bool
		want     Verdict
	}{
		{n, "93.184.216.34", 443, "tcp", false, Accept},
		{n, "93.184.216.34", 443, "udp", false, Reject},
		{n, "93.184.216.34", 80, "tcp", false, Reject},
		{n, "10.1.2.3", 80, "udp", false, Accept},
		{n, "10.1.2.3", 80, "udp", true, Reject}, // the host's own, named by a range only
		{n, "10.2.0.1", 443, "tcp", false, Reject},
		{n, "192.168.7.5", 5432, "tcp", true, Accept},
		{n, "192.168.7.5", 22, "tcp", true, Reject},
		{n, "169.254.169.254", 80, "tcp", false, Accept}, // it was named
		{n, "169.254.170.2", 443, "tcp", false, Reject},
		{n, "2606:2800::1", 443, "tcp", false, Accept},
		{n, "fd00:1::7", 53, "udp", false, Accept},
		{n, "fd00:ec2::254", 443, "tcp", false, Reject},
		{all, "93.184.216.34", 25, "tcp", false, Accept},
		{all, "93.184.216.34", 25, "tcp", true, Reject},
		{all, "169.254.169.254", 80, "tcp", false, Reject},
		{all, "100.100.100.200", 80, "tcp", false, Reject},
		{all, "168.63.129.16", 80, "tcp", false, Reject},
		{all, "172.17.0.2", 80, "tcp", false, Reject},
		{all, "fd00:ec2::254", 80, "tcp", false, Reject},
		{all, "fe80::1", 80, "tcp", false, Reject},
		{all, "64:ff9b::a00:1", 80, "tcp", false, Reject},
		{all, "2606:2800::1", 80, "tcp", false, Accept},
		{sibling, "10.213.112.7", 80, "tcp", false, Reject},
		{sibling, "10.214.0.1", 80, "tcp", false, Accept},
	} {
		if got := decide(tt.n, tt.to, tt.port, tt.protocol, tt.local); got != tt.want {
			t.Errorf("%s port %d/%s (the host's own: %v): verdict %d, want %d", tt.to, tt.port, tt.protocol, tt.local, got, tt.want)
		}
	}
}

func TestAddressesFollowTheIDs(t *testing.T) {
	n := Network{Range4: DefaultRange4, Range6: DefaultRange6}
	v4, v6 := n.Addresses(0x7012_0000)
	if v4.String() != "10.213.112.18" || v6.String() != "fd5b:d5ba:1ac5:1::7012" {
		t.Errorf("addresses %v and %v", v4, v6)
	}
}
