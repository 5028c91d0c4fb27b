// Package admin lets commands query running daemons for their sandboxes. Each daemon has
// two sockets that only root can open. The supervisor serves the first with facts: which
// sandboxes exist, their cgroups and processes, and what they may connect to. The worker
// serves the second with a report: states and counts. The worker may be compromised, so
// commands find processes by facts only, and ignore reports about sandboxes that the
// supervisor does not know.
//
// The control process of a daemon that serves many functions has a third one, for its
// operators: root and the members of a group.
//
// [ServeFacts], [ServeReports] and [ServeHostKey] are for daemons, [List], [Find] and [Serving]
// for commands.
package admin

import (
	"fmt"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/isolation"
)

// Fact is the supervisor's description of one sandbox.
type Fact struct {
	ID          string         `json:"id"`
	Revision    function.ID    `json:"revision"`
	Created     time.Time      `json:"created"` // when it entered quarantine, if Quarantined
	Quarantined bool           `json:"quarantined,omitempty"`
	Cgroup      string         `json:"cgroup"` // below the mount of each tree; "" in quarantine
	Init        map[string]int `json:"init"`   // host process id of PID 1, by domain
	MemoryBytes uint64         `json:"memory_bytes"`
	PIDs        uint64         `json:"pids"`
	Network     Network        `json:"network"`
}

// Network describes what a sandbox may connect to, and its traffic.
type Network struct {
	Mode   string             `json:"mode"`
	Unsafe bool               `json:"unsafe,omitempty"` // it is the network of the host
	Allow  []string           `json:"allow,omitempty"`  // rules by address and by name
	Egress *isolation.Traffic `json:"egress,omitempty"`

	LookupsAnswered uint64 `json:"lookups_answered,omitempty"` // reported by the worker
	LookupsRefused  uint64 `json:"lookups_refused,omitempty"`  // reported by the worker
}

// NetworkOf describes the network n, without traffic.
func NetworkOf(n isolation.Network) Network {
	info := Network{Mode: n.Mode, Unsafe: n.Mode == isolation.NetworkHost}
	if n.Mode != isolation.NetworkEgress {
		return info
	}
	for _, r := range n.Policy.Allow {
		info.Allow = append(info.Allow, r.String())
	}
	for _, r := range n.Policy.Names {
		info.Allow = append(info.Allow, r.String())
	}
	return info
}

// String returns the description that inspect prints.
func (n Network) String() string {
	switch n.Mode {
	case isolation.NetworkHost:
		return "the host's own (UNSAFE)"
	case isolation.NetworkEgress:
	default:
		return "loopback only"
	}
	line := "egress to " + cli.Printable(strings.Join(n.Allow, " "))
	if t := n.Egress; t != nil {
		addresses := []string{t.IPv4.String()}
		if t.IPv6.IsValid() {
			addresses = append(addresses, t.IPv6.String())
		}
		line += fmt.Sprintf("\n         from %s; sent %d packets (%d bytes), dropped %d (%d bytes); lookups: %d answered, %d refused",
			strings.Join(addresses, " and "), t.AllowedPackets, t.AllowedBytes, t.DroppedPackets, t.DroppedBytes,
			n.LookupsAnswered, n.LookupsRefused)
	}
	return line
}

// Report is the worker's description of its sandboxes.
type Report struct {
	Functions map[uint64]string `json:"functions"` // names, by the numbers of revisions
	Versions  map[uint64]string `json:"versions"`  // the same
	Sandboxes []State           `json:"sandboxes"`
}

// State is the worker's description of one sandbox.
type State struct {
	ID              string `json:"id"`
	State           string `json:"state"`
	Invocations     uint64 `json:"invocations"`
	LookupsAnswered uint64 `json:"lookups_answered,omitempty"`
	LookupsRefused  uint64 `json:"lookups_refused,omitempty"`
}

// Sandbox combines the Fact and the State of one sandbox.
type Sandbox struct {
	Fact
	Instance    string `json:"instance"` // id of the daemon
	Function    string `json:"function"`
	Version     string `json:"version"`
	State       string `json:"state"`
	Invocations uint64 `json:"invocations"`
}

// States of sandboxes that the worker does not report.
const (
	StateQuarantined = "Quarantined" // it could not be removed
	StateUnknown     = "Unknown"     // the worker did not report the sandbox
)
