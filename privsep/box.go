package privsep

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/group"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// Box is a sandbox whose privileged side is in the supervisor's process. It implements
// supervisor.Box; see there. Freezing and measuring need no request.
type Box struct {
	client     *Client
	number     uint32
	id, cgroup string
	group      *group.Handle
	listener   net.Listener

	mu   sync.Mutex
	pids map[string]int
}

// Create asks for a sandbox. The caller must Close it.
func (c *Client) Create(ctx context.Context) (_ *Box, err error) {
	a, err := c.call(ctx, request{op: opCreate})
	if err != nil {
		return nil, err
	}
	b := &Box{client: c, number: a.n, pids: map[string]int{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close(context.WithoutCancel(ctx)))
		}
	}()
	if len(a.text) != 3 || len(a.files) == 0 {
		closeAll(a.files)
		return nil, errors.New("privsep: malformed answer")
	}
	b.id, b.cgroup = a.text[0], a.text[1]
	listener := a.files[0]
	defer listener.Close()
	files, err := withRoles(a.files[1:], a.text[2])
	if err != nil {
		return nil, err
	}
	if b.group, err = group.Open(files); err != nil {
		return nil, err
	}
	if b.listener, err = net.FileListener(listener); err != nil {
		return nil, fmt.Errorf("privsep: listener: %w", err)
	}
	return b, nil
}

// withRoles says what the files are for. With an error it closes them.
func withRoles(files []*os.File, roles string) (list []group.File, err error) {
	if len(files) != len(roles) {
		closeAll(files)
		return nil, errors.New("privsep: malformed answer")
	}
	for i, f := range files {
		list = append(list, group.File{Role: group.Role(roles[i]), File: f})
	}
	return list, nil
}

// ID is the sandbox's id.
func (b *Box) ID() string { return b.id }

// CgroupPath is the sandbox's parent cgroup, absolute below the mount of each tree.
func (b *Box) CgroupPath() string { return b.cgroup }

// PIDs are the host's process ids of the domains' init handlers.
func (b *Box) PIDs() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.pids)
}

func (b *Box) call(ctx context.Context, op op, arg uint32, files ...*os.File) (answer, error) {
	return b.client.call(ctx, request{op: op, sandbox: b.number, arg: arg}, files...)
}

// Start makes a domain.
func (b *Box) Start(ctx context.Context, domain string) (*wire.Conn, error) {
	i := slices.Index(domains, domain)
	if i < 0 {
		return nil, fmt.Errorf("privsep: there is no domain %q", domain)
	}
	a, err := b.call(ctx, opStart, uint32(i))
	if err != nil {
		return nil, err
	}
	if len(a.files) == 0 || len(a.text) != 1 {
		closeAll(a.files)
		return nil, errors.New("privsep: malformed answer")
	}
	files, err := withRoles(a.files[1:], a.text[0])
	if err != nil {
		a.files[0].Close()
		return nil, err
	}
	for _, f := range files {
		b.group.AddOOMEvents(f.File)
	}
	b.mu.Lock()
	b.pids[domain] = int(a.n)
	b.mu.Unlock()
	return wire.Take(a.files[0])
}

// GivePipes makes the sandbox user the owner of pipes.
func (b *Box) GivePipes(pipes ...*os.File) error {
	_, err := b.call(context.Background(), opGivePipes, 0, pipes...)
	return err
}

// Freeze stops every process of the sandbox.
func (b *Box) Freeze(ctx context.Context) error { return b.group.SetFrozen(ctx, true) }

// Thaw undoes Freeze.
func (b *Box) Thaw(ctx context.Context) error { return b.group.SetFrozen(ctx, false) }

// SetThrottled turns the CPU quota on or off.
func (b *Box) SetThrottled(on bool) error {
	arg := uint32(0)
	if on {
		arg = 1
	}
	_, err := b.call(context.Background(), opThrottle, arg)
	return err
}

// Kill sends SIGKILL to every process of the sandbox.
func (b *Box) Kill() error {
	_, err := b.call(context.Background(), opKill, 0)
	return err
}

// MemoryPeak returns the most memory that the sandbox ever had, in bytes.
func (b *Box) MemoryPeak() (uint64, error) { return b.group.MemoryPeak() }

// Usage returns what the sandbox has used so far.
func (b *Box) Usage() (isolation.Usage, error) { return b.group.Usage() }

// Listener is the socket of the Runtime API inside the sandbox.
func (b *Box) Listener() net.Listener { return b.listener }

// Dial connects to a TCP port on the sandbox's loopback, 127.0.0.1, and nowhere else.
func (b *Box) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, text, err := net.SplitHostPort(addr)
	port, err2 := strconv.ParseUint(text, 10, 16)
	if err != nil || err2 != nil || host != "127.0.0.1" || network != "tcp" || port == 0 {
		return nil, fmt.Errorf("privsep: %s %s is no TCP port of 127.0.0.1", network, addr)
	}
	a, err := b.call(ctx, opDial, uint32(port))
	if err != nil {
		return nil, err
	}
	if len(a.files) != 1 {
		closeAll(a.files)
		return nil, errors.New("privsep: malformed answer")
	}
	return connOf(a.files[0])
}

// Close removes the sandbox.
func (b *Box) Close(ctx context.Context) error {
	_, err := b.call(ctx, opClose, 0)
	if err == nil || errors.Is(err, errGone) {
		if b.listener != nil {
			b.listener.Close()
		}
		if b.group != nil {
			b.group.Close()
		}
	}
	return err
}
