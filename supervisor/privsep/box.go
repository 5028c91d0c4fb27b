package privsep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/internal/tracing"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/cgroup"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// Box is the worker's handle of a sandbox whose kernel objects are in the supervisor's
// process. It implements supervisor.Box; see there for what its methods do. Freezing and
// measuring send no request.
type Box struct {
	client     *Client
	number     uint32
	id, cgroup string
	group      *cgroup.Handle
	listener   net.Listener
	udp        net.PacketConn // for name lookups; nil without network egress
	tcp        net.Listener   // for name lookups; nil without network egress

	mu    sync.Mutex
	pids  map[string]int // host process ids of the init handlers, by domain
	steps tracing.Replay // spans of the supervisor
}

var errMalformed = errors.New("malformed answer from the supervisor")

// Create requests a sandbox of the revision with that number. The caller must Close it. The
// error is message.ErrUnknownRevision if the revision is not registered, and
// message.ErrTooMany if there are too many sandboxes.
func (c *Client) Create(ctx context.Context, revision uint64) (_ *Box, err error) {
	a, err := c.call(ctx, request{op: opCreate, value: revision})
	b := &Box{client: c, number: a.n, pids: map[string]int{}}
	defer func() {
		if err != nil && b.number != 0 {
			err = errors.Join(err, b.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err != nil {
		return nil, err // with a number if the sandbox exists and only its files were lost
	}
	if len(a.text) != 5 {
		closeAll(a.files)
		return nil, errMalformed
	}
	b.id, b.cgroup = a.text[0], a.text[1]
	sockets, err := strconv.Atoi(a.text[4])
	if err != nil || sockets < 1 || sockets > len(a.files) {
		closeAll(a.files)
		return nil, errMalformed
	}
	defer closeAll(a.files[:sockets])
	files, err := withRoles(a.files[sockets:], a.text[2])
	if err != nil {
		return nil, err
	}
	if b.group, err = cgroup.Open(files); err != nil {
		return nil, err
	}
	if err := b.listen(a.files[:sockets]); err != nil {
		return nil, err
	}
	return b, b.addSteps(ctx, a.text[3])
}

// Credentials returns the current credentials of the role that the sandbox's function has.
func (b *Box) Credentials(ctx context.Context) ([]string, error) {
	a, err := b.client.call(ctx, request{op: opCredentials, sandbox: b.number})
	return a.text, err
}

// listen creates the listeners from the sockets, which the caller still owns.
func (b *Box) listen(sockets []*os.File) (err error) {
	if b.listener, err = net.FileListener(sockets[0]); err != nil {
		return fmt.Errorf("use the listener of the Runtime API: %w", err)
	}
	if len(sockets) != 3 {
		return nil
	}
	if b.udp, err = net.FilePacketConn(sockets[1]); err == nil {
		b.tcp, err = net.FileListener(sockets[2])
	}
	if err != nil {
		return fmt.Errorf("use the sockets for name lookups: %w", err)
	}
	return nil
}

// addSteps adds the spans that the supervisor has recorded to the span in ctx.
func (b *Box) addSteps(ctx context.Context, steps string) error {
	if steps == "" {
		return nil
	}
	var marks []tracing.Mark
	if err := json.Unmarshal([]byte(steps), &marks); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.steps.Add(ctx, marks)
	return nil
}

// withRoles pairs each file with its role. On an error it closes the files.
func withRoles(files []*os.File, roles string) (list []cgroup.File, err error) {
	if len(files) != len(roles) {
		closeAll(files)
		return nil, errMalformed
	}
	for i, f := range files {
		list = append(list, cgroup.File{Role: cgroup.Role(roles[i]), File: f})
	}
	return list, nil
}

// ID returns the id of the sandbox.
func (b *Box) ID() string { return b.id }

// CgroupPath returns the path of the sandbox's parent cgroup below the mount point of each
// tree.
func (b *Box) CgroupPath() string { return b.cgroup }

// PIDs returns the host process ids of the init handlers, by domain.
func (b *Box) PIDs() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.pids)
}

func (b *Box) call(ctx context.Context, op op, arg uint32, files ...*os.File) (answer, error) {
	return b.client.call(ctx, request{op: op, sandbox: b.number, arg: arg}, files...)
}

// Start creates a domain.
func (b *Box) Start(ctx context.Context, domain string) (*wire.Conn, error) {
	i := slices.Index(domains, domain)
	if i < 0 {
		return nil, fmt.Errorf("unknown domain %q", domain)
	}
	a, err := b.call(ctx, opStart, uint32(i))
	if err != nil {
		return nil, err
	}
	if len(a.files) == 0 || len(a.text) != 2 {
		closeAll(a.files)
		return nil, errMalformed
	}
	files, err := withRoles(a.files[1:], a.text[0])
	if err != nil {
		a.files[0].Close()
		return nil, err
	}
	for _, f := range files {
		b.group.Add(f)
	}
	b.mu.Lock()
	b.pids[domain] = int(a.n)
	b.mu.Unlock()
	conn, err := wire.Take(a.files[0])
	if err != nil {
		return nil, err
	}
	if err := b.addSteps(ctx, a.text[1]); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// GivePipes makes the sandbox user the owner of pipes.
func (b *Box) GivePipes(ctx context.Context, pipes ...*os.File) error {
	_, err := b.call(ctx, opGivePipes, 0, pipes...)
	return err
}

// Freeze stops every process of the sandbox.
func (b *Box) Freeze(ctx context.Context) error { return b.group.SetFrozen(ctx, true) }

// Thaw undoes Freeze.
func (b *Box) Thaw(ctx context.Context) error { return b.group.SetFrozen(ctx, false) }

// SetThrottled turns the CPU quota on or off.
func (b *Box) SetThrottled(ctx context.Context, on bool) error {
	arg := uint32(0)
	if on {
		arg = 1
	}
	_, err := b.call(ctx, opThrottle, arg)
	return err
}

// Kill sends SIGKILL to every process of the sandbox.
func (b *Box) Kill(ctx context.Context) error {
	_, err := b.call(ctx, opKill, 0)
	return err
}

// MemoryPeak returns the peak memory of the sandbox in bytes. See supervisor.Box.
func (b *Box) MemoryPeak() (uint64, error) { return b.group.MemoryPeak() }

// MemoryUsed returns the most memory that the processes had. See supervisor.Box.
func (b *Box) MemoryUsed() (uint64, error) { return b.group.MemoryUsed() }

// Usage returns what the sandbox has used so far.
func (b *Box) Usage() (isolation.Usage, error) { return b.group.Usage() }

// Listener returns the socket of the Runtime API inside the sandbox.
func (b *Box) Listener() net.Listener { return b.listener }

// Dial connects to a TCP port on the sandbox's loopback address, 127.0.0.1. It refuses any
// other address.
func (b *Box) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, text, err := net.SplitHostPort(addr)
	port, err2 := strconv.ParseUint(text, 10, 16)
	if err != nil || err2 != nil || host != "127.0.0.1" || network != "tcp" || port == 0 {
		return nil, fmt.Errorf("%s %s is not a TCP port of 127.0.0.1", network, addr)
	}
	a, err := b.call(ctx, opDial, uint32(port))
	if err != nil {
		return nil, err
	}
	return a.conn()
}

// Domain returns the domain whose process created conn, a connection accepted by Listener.
func (b *Box) Domain(ctx context.Context, conn net.Conn) (string, error) {
	socket, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return "", fmt.Errorf("%T is not a socket", conn)
	}
	f, err := socket.File()
	if err != nil {
		return "", err
	}
	defer f.Close()
	a, err := b.call(ctx, opDomain, 0, f)
	if err != nil {
		return "", err
	}
	if len(a.text) != 1 {
		return "", errMalformed
	}
	return a.text[0], nil
}

// Lookups returns the sockets on which the sandbox sends name lookups, or nil without
// network egress. The box owns them, and Close closes them.
func (b *Box) Lookups() (udp net.PacketConn, tcp net.Listener) { return b.udp, b.tcp }

// Allow lets the sandbox connect to services, given by their numbers (0 to 63, see
// isolation.Policy.Services), at addresses that a name resolved to. It holds for the time
// valid, the rest of the record's lifetime.
func (b *Box) Allow(ctx context.Context, services []int, addrs []netip.Addr, valid time.Duration) error {
	r := request{op: opAllow, sandbox: b.number, arg: uint32(min(max(valid/time.Second, 0), math.MaxUint32))}
	for _, n := range services {
		if n < 0 || n > 63 {
			return fmt.Errorf("service number %d is not between 0 and 63", n)
		}
		r.value |= 1 << n
	}
	for _, r.addr = range addrs {
		if _, err := b.client.call(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// Close removes the sandbox. The box cannot be used afterwards, even if Close returns an
// error: the supervisor is responsible for what could not be removed.
func (b *Box) Close(ctx context.Context) error {
	_, err := b.call(ctx, opClose, 0)
	for _, c := range []io.Closer{b.listener, b.udp, b.tcp} {
		if c != nil {
			c.Close()
		}
	}
	if b.group != nil {
		b.group.Close()
	}
	return err
}
