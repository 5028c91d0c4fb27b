//go:build integration

package integration

import (
	"encoding/json"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// dialStep connects to servePort of an address.
func dialStep(addr string) script.Step {
	return script.Step{Op: "dial", Method: "tcp", Path: net.JoinHostPort(addr, servePort), MS: 1500}
}

// wantReached lets the function connect to addresses, all of which must answer or none.
func (d *daemon) wantReached(want bool, addrs ...string) {
	d.t.Helper()
	var steps []script.Step
	for _, a := range addrs {
		steps = append(steps, dialStep(a))
	}
	for i, r := range d.do(steps...).Results {
		if (r.Text == "pong") != want {
			d.t.Errorf("%s: %+v; want an answer: %v", addrs[i], r, want)
		}
	}
}

// wantNothingOnNetwork checks that no interface, route or table of a daemon is in the space.
func (s *space) wantNothingOnNetwork(instance string) {
	s.t.Helper()
	for _, args := range [][]string{{"link"}, {"route"}, {"-6", "route"}} {
		if out := s.output("ip", args...); strings.Contains(out, "sb"+instance) {
			s.t.Errorf("ip %v shows what is left:\n%s", args, out)
		}
	}
	for _, name := range s.tables() {
		if strings.Contains(name, instance) {
			s.t.Errorf("the table %s is left", name)
		}
	}
}

// tables are the names of the tables of the space's packet filter.
func (s *space) tables() []string {
	s.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(s.file.Fd())))
	if err != nil {
		s.t.Fatal(err)
	}
	list, err := c.ListTables()
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, t := range list {
		names = append(names, t.Name)
	}
	return names
}

// inspectNetwork is what inspect says of the network of the daemon's only sandbox, all
// of whose posture must be met.
func (d *daemon) inspectNetwork() (n struct {
	Mode   string
	Unsafe bool
	Egress struct {
		AllowedPackets uint64 `json:"allowed_packets"`
		DroppedPackets uint64 `json:"dropped_packets"`
	}
	Answered uint64 `json:"lookups_answered"`
	Refused  uint64 `json:"lookups_refused"`
}) {
	d.t.Helper()
	var list []struct{ ID string }
	run := func(v any, args ...string) {
		out, err := d.folders.host.command(sandboxd, append(args, "--run-dir", d.folders.Run, "--output=json")...).Output()
		if err == nil {
			err = json.Unmarshal(out, v)
		}
		if err != nil {
			d.t.Fatalf("sandboxd %v: %v: %s", args, err, out)
		}
	}
	if run(&list, "ps"); len(list) != 1 {
		d.t.Fatalf("%d sandboxes, want 1", len(list))
	}
	var i struct{ Network any }
	i.Network = &n
	run(&i, "inspect", list[0].ID)
	var posture any
	run(&posture, "inspect", "--posture", list[0].ID)
	return n
}

// A function reaches what it is allowed to by address or by name, and nothing else.
func TestEgress(t *testing.T) {
	f := newFolders(t)
	f.host = newInternet(t)
	d := startIn(t, f, oneCPU, "--timeout=60s", "--pool=1", "--network=egress",
		"--allow", public4+":7000/tcp", "--allow", "["+public6+"]", "--allow-name=*.example.com:7000/tcp", function(t))
	d.wantReached(true, public4, public6)
	d.wantReached(false, append([]string{named4, hostUplink4, hostUplink6, "169.254.1.1"}, closedAddresses...)...)
	before := d.inspectNetwork()
	if before.Mode != "egress" || before.Egress.AllowedPackets < 6 || before.Egress.DroppedPackets < 11 {
		t.Errorf("inspect says %+v", before)
	}

	got := d.do(script.Step{Op: "lookup", Path: "elsewhere.example.org"}, script.Step{Op: "lookup", Path: "www.example.com"}, dialStep(named4)).Results
	if got[0].Error == "" || !slices.Equal(got[1].List, []string{named4}) || got[2].Text != "pong" {
		t.Errorf("lookups and the address of a name: %+v", got)
	}
	if n := d.inspectNetwork(); n.Answered == 0 || n.Refused == 0 || n.Egress.AllowedPackets <= before.Egress.AllowedPackets {
		t.Errorf("inspect says %+v after %+v", n, before)
	}

	for _, s := range []script.Step{
		{Op: "rawsocket", Method: "ip"}, {Op: "rawsocket", Method: "packet"}, {Op: "linkdown", Path: "eth0"}, {Op: "linkdown", Path: "lo"},
		{Op: "bind", Path: ":1023"}, // the settled question
	} {
		// ENOSYS is the seccomp filter's answer to what no program needs.
		if r := d.do(s).Results[0]; !slices.Contains([]syscall.Errno{syscall.EPERM, syscall.EACCES, syscall.ENOSYS}, syscall.Errno(r.Errno)) {
			t.Errorf("%+v: %+v, want it refused", s, r)
		}
	}
	if r := d.do(script.Step{Op: "bind", Path: ":1024"}).Results[0]; r.Error != "" {
		t.Errorf("listen at a port of its own: %+v", r)
	}
	d.stop()
	f.host.wantNothingOnNetwork(d.Instance)
}

// A killed daemon leaves its table, so that its sandboxes reach no more than before as
// long as they live; the next start removes it.
func TestEgressAfterKill(t *testing.T) {
	f := newFolders(t)
	f.host = newInternet(t)
	flags := []string{oneCPU, "--pool=1", "--network=egress", "--allow", public4, function(t)}
	d := startIn(t, f, flags...)
	d.wantReached(true, public4)
	d.crash()
	if !slices.Contains(f.host.tables(), "sandboxd-"+d.Instance) {
		t.Errorf("the tables after the kill are %v", f.host.tables())
	}
	next := startIn(t, f, flags...)
	f.host.wantNothingOnNetwork(d.Instance)
	next.wantReached(true, public4)
	next.stop()
	f.host.wantNothingOnNetwork(next.Instance)
}

// With the host's network the same function reaches what the host reaches: the probes of
// TestEgress do see what answers. It is called unsafe wherever it is told of.
func TestHostNetwork(t *testing.T) {
	f := newFolders(t)
	f.host = newInternet(t)
	d := startIn(t, f, oneCPU, "--timeout=60s", "--pool=1", "--network=host", "--unsafe-host-network", function(t))
	d.waitFor("UNSAFE")
	d.wantReached(true, append([]string{public4, public6, named4, hostUplink4, hostUplink6}, closedAddresses...)...)
	if n := d.inspectNetwork(); n.Mode != "host" || !n.Unsafe {
		t.Errorf("inspect says %+v", n)
	}
	env := d.do(script.Step{Op: "env"}).Results[0].List
	if slices.Contains(env, "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001") {
		t.Error("the Runtime API has the port that every sandbox would have")
	}
}
