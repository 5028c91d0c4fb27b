//go:build integration

package network

import (
	"encoding/json"
	"net"
	"slices"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// dialStep connects to servePort of an address.
func dialStep(addr string) script.Step {
	return script.Step{Op: "dial", Method: "tcp", Path: net.JoinHostPort(addr, harness.ServePort), MS: 1500}
}

// wantReached lets the function connect to addresses, all of which must answer or none.
func wantReached(d *harness.Daemon, want bool, addrs ...string) {
	d.T.Helper()
	var steps []script.Step
	for _, a := range addrs {
		steps = append(steps, dialStep(a))
	}
	for i, r := range d.Do(steps...).Results {
		if (r.Text == "pong") != want {
			d.T.Errorf("%s: %+v; want an answer: %v", addrs[i], r, want)
		}
	}
}

// inspectNetwork is what inspect says of the network of the daemon's only sandbox, all
// of whose posture must be met.
func inspectNetwork(d *harness.Daemon) (n struct {
	Mode   string
	Unsafe bool
	Egress struct {
		AllowedPackets uint64 `json:"allowed_packets"`
		DroppedPackets uint64 `json:"dropped_packets"`
	}
	Answered uint64 `json:"lookups_answered"`
	Refused  uint64 `json:"lookups_refused"`
}) {
	d.T.Helper()
	var list []struct{ ID string }
	run := func(v any, args ...string) {
		out, err := d.Folders.Host.Command(harness.Sandboxd, append(args, "--run-dir", d.Folders.Run, "--output=json")...).Output()
		if err == nil {
			err = json.Unmarshal(out, v)
		}
		if err != nil {
			d.T.Fatalf("sandboxd %v: %v: %s", args, err, out)
		}
	}
	if run(&list, "ps"); len(list) != 1 {
		d.T.Fatalf("%d sandboxes, want 1", len(list))
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
	f := harness.NewFolders(t)
	f.Host = harness.NewInternet(t)
	d := harness.StartIn(t, f, harness.OneCPU, "--timeout=60s", "--pool=1", "--network=egress",
		"--allow", harness.Public4+":7000/tcp", "--allow", "["+harness.Public6+"]", "--allow-name=*.example.com:7000/tcp", harness.Function(t))
	wantReached(d, true, harness.Public4, harness.Public6)
	wantReached(d, false, append([]string{harness.Named4, harness.HostUplink4, harness.HostUplink6, "169.254.1.1"}, harness.ClosedAddresses...)...)
	before := inspectNetwork(d)
	if before.Mode != "egress" || before.Egress.AllowedPackets < 6 || before.Egress.DroppedPackets < 11 {
		t.Errorf("inspect says %+v", before)
	}

	got := d.Do(script.Step{Op: "lookup", Path: "elsewhere.example.org"}, script.Step{Op: "lookup", Path: "www.example.com"}, dialStep(harness.Named4)).Results
	if got[0].Error == "" || !slices.Equal(got[1].List, []string{harness.Named4}) || got[2].Text != "pong" {
		t.Errorf("lookups and the address of a name: %+v", got)
	}
	if n := inspectNetwork(d); n.Answered == 0 || n.Refused == 0 || n.Egress.AllowedPackets <= before.Egress.AllowedPackets {
		t.Errorf("inspect says %+v after %+v", n, before)
	}

	for _, s := range []script.Step{
		{Op: "rawsocket", Method: "ip"}, {Op: "rawsocket", Method: "packet"}, {Op: "linkdown", Path: "eth0"}, {Op: "linkdown", Path: "lo"},
		{Op: "bind", Path: ":1023"}, // the settled question
	} {
		// ENOSYS is the seccomp filter's answer to what no program needs.
		if r := d.Do(s).Results[0]; !slices.Contains([]syscall.Errno{syscall.EPERM, syscall.EACCES, syscall.ENOSYS}, syscall.Errno(r.Errno)) {
			t.Errorf("%+v: %+v, want it refused", s, r)
		}
	}
	if r := d.Do(script.Step{Op: "bind", Path: ":1024"}).Results[0]; r.Error != "" {
		t.Errorf("listen at a port of its own: %+v", r)
	}
	d.Stop()
	f.Host.WantNothingOnNetwork(d.Instance)
}

// A killed daemon leaves its table, so that its sandboxes reach no more than before as
// long as they live; the next start removes it.
func TestEgressAfterKill(t *testing.T) {
	f := harness.NewFolders(t)
	f.Host = harness.NewInternet(t)
	flags := []string{harness.OneCPU, "--pool=1", "--network=egress", "--allow", harness.Public4, harness.Function(t)}
	d := harness.StartIn(t, f, flags...)
	wantReached(d, true, harness.Public4)
	d.Crash()
	if !slices.Contains(f.Host.Tables(), "sandboxd-"+d.Instance) {
		t.Errorf("the tables after the kill are %v", f.Host.Tables())
	}
	next := harness.StartIn(t, f, flags...)
	f.Host.WantNothingOnNetwork(d.Instance)
	wantReached(next, true, harness.Public4)
	next.Stop()
	f.Host.WantNothingOnNetwork(next.Instance)
}

// With the host's network the same function reaches what the host reaches: the probes of
// TestEgress do see what answers. It is called unsafe wherever it is told of.
func TestHostNetwork(t *testing.T) {
	f := harness.NewFolders(t)
	f.Host = harness.NewInternet(t)
	d := harness.StartIn(t, f, harness.OneCPU, "--timeout=60s", "--pool=1", "--network=host", "--unsafe-host-network", harness.Function(t))
	d.WaitFor("UNSAFE")
	wantReached(d, true, append([]string{harness.Public4, harness.Public6, harness.Named4, harness.HostUplink4, harness.HostUplink6}, harness.ClosedAddresses...)...)
	if n := inspectNetwork(d); n.Mode != "host" || !n.Unsafe {
		t.Errorf("inspect says %+v", n)
	}
	env := d.Do(script.Step{Op: "env"}).Results[0].List
	if slices.Contains(env, "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001") {
		t.Error("the Runtime API has the port that every sandbox would have")
	}
}
