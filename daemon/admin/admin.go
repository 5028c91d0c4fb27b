// Package admin is how commands ask running daemons for their sandboxes. Each daemon has
// two sockets that only root can open. At one the supervisor says what it knows for sure:
// which sandboxes there are, their cgroups and processes, and what they may reach. At the
// other the worker says the rest: states and counts. The worker may have been taken over,
// so nothing that it says leads a command to a process, and what it says of sandboxes that
// the supervisor does not know is dropped.
package admin

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/isolation"
)

// Fact is what the supervisor says of a sandbox.
type Fact struct {
	ID          string         `json:"id"`
	Revision    function.ID    `json:"revision"`
	Created     time.Time      `json:"created"` // in quarantine: since when
	Quarantined bool           `json:"quarantined,omitempty"`
	Cgroup      string         `json:"cgroup"` // below the mount of each tree; "" in quarantine
	Init        map[string]int `json:"init"`   // domain to the host's process id of its PID 1
	MemoryBytes uint64         `json:"memory_bytes"`
	PIDs        uint64         `json:"pids"`
	Network     Network        `json:"network"`
}

// Network is what a sandbox may reach, and what it has sent.
type Network struct {
	Mode   string             `json:"mode"`
	Unsafe bool               `json:"unsafe,omitempty"` // it is the host's
	Allow  []string           `json:"allow,omitempty"`  // rules by address and by name
	Egress *isolation.Traffic `json:"egress,omitempty"`

	LookupsAnswered uint64 `json:"lookups_answered,omitempty"` // as the worker says
	LookupsRefused  uint64 `json:"lookups_refused,omitempty"`  // as the worker says
}

// NetworkOf says what sandboxes with the network n may reach.
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

// String is the line of inspect.
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

// Report is what the worker says of its sandboxes.
type Report struct {
	Functions map[uint64]string `json:"functions"` // names by the numbers of revisions
	Sandboxes []State           `json:"sandboxes"`
}

// State is what the worker says of one sandbox.
type State struct {
	ID              string `json:"id"`
	State           string `json:"state"`
	Invocations     uint64 `json:"invocations"`
	LookupsAnswered uint64 `json:"lookups_answered,omitempty"`
	LookupsRefused  uint64 `json:"lookups_refused,omitempty"`
}

// Sandbox is what commands know of a sandbox, from both.
type Sandbox struct {
	Fact
	Instance    string `json:"instance"` // id of the daemon
	Function    string `json:"function"`
	State       string `json:"state"`
	Invocations uint64 `json:"invocations"`
}

// States of sandboxes that the worker does not name.
const (
	StateQuarantined = "Quarantined" // it could not be removed
	StateUnknown     = "Unknown"     // the worker does not say
)

// Listen makes a socket at path that only root can open. The socket is not removed when
// it is closed: it goes with the instance's folder.
func Listen(path string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, nil
}
