package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/tracing"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/cgroup"
	"github.com/sandboxd/sandboxd/isolation/egress"
)

// Sandbox holds the kernel objects of one sandbox. It implements supervisor.Box, which
// documents its methods and their concurrency.
type Sandbox struct {
	engine *Engine
	spec   isolation.Spec
	group  *parentCgroup
	net    *netns
	port   *egress.Port               // nil without NetworkEgress
	tmp    func() (*tmpVolume, error) // waits for the creation of /tmp; nil without a template
	owners func() (mapper, error)     // waits for the creation of the mapper

	root   string     // mount point of the root; valid until released
	closer sync.Mutex // serializes Close

	cpus       []int             // processors that it may use
	limitFiles map[string]string // content of the files that tell it its limits, by path
	shown      isolation.Limits  // the limits that these files tell

	mu       sync.Mutex // never held during an operation that can block
	domains  map[string]*domain
	attached int // number of domains that have their files

	releaseMu sync.Mutex // guards released, and serializes release
	released  bool       // the daemon has released root and tmp; domains keep them
}

// rollBack removes a sandbox whose creation has failed with err. It returns err, or a
// RemainsError if the sandbox could not be removed; the engine then keeps track of the remains.
func (s *Sandbox) rollBack(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTime)
	defer cancel()
	if left := s.Close(ctx); left != nil {
		s.engine.remains.add(s)
		return &RemainsError{ID: s.spec.ID, Err: err, Left: left}
	}
	return err
}

// rollbackTime limits the removal after a failed creation.
const rollbackTime = 5 * time.Second

// Create creates the cgroup, the network namespace with its listener, the root and the /tmp
// of a sandbox. It starts no process. The caller must Close the sandbox. If the error is a
// *RemainsError, the caller must call RemoveRemains until it succeeds.
func (e *Engine) Create(ctx context.Context, spec isolation.Spec) (_ *Sandbox, err error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("create %s: %w", spec.ID, err)
	}
	if e.remains.of(spec.ID) != nil {
		return nil, fmt.Errorf("sandbox id %s is in use by the remains of another sandbox: %w", spec.ID, fs.ErrExist)
	}
	s := &Sandbox{engine: e, spec: spec, domains: map[string]*domain{}}
	defer func() {
		if err != nil {
			err = s.rollBack(ctx, err)
		}
	}()
	s.owners = inBackground(func() (m mapper, err error) {
		_, end := tracing.Step(ctx, "user namespace of the files")
		defer end()
		m = mapper{base: spec.IDBase}
		m.root, err = newUserNS(0, 0, spec.IDBase)
		return m, err
	})
	if spec.Tmp.Template != "" {
		s.tmp = inBackground(func() (*tmpVolume, error) {
			_, end := tracing.Step(ctx, "/tmp")
			defer end()
			return newTmp(spec.Tmp.Template, len(spec.Domains), spec.IDBase) // root inside, as on Lambda (ENV-30)
		})
	}
	connected := inBackground(func() (struct{}, error) { return struct{}{}, inStep(ctx, "network", s.connect) })
	err = inStep(ctx, "cgroup", func() (err error) {
		s.group, err = newCgroup(e.place, spec.ID, spec.Limits, len(spec.Domains))
		return err
	})
	failpoint.Pass(failpoint.CgroupMade)
	if _, e := connected(); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	failpoint.Pass(failpoint.NetNSMade)
	_, end := tracing.Step(ctx, "root")
	defer end()
	if err := s.mountRoot(); err != nil {
		return nil, err
	}
	failpoint.Pass(failpoint.RootMounted)
	if err := s.fillRoot(); err != nil {
		return nil, err
	}
	return s, nil
}

// inStep calls f within a span of the trace in ctx.
func inStep(ctx context.Context, name string, f func() error) error {
	_, end := tracing.Step(ctx, name)
	defer end()
	return f()
}

// connect creates the sandbox's network.
func (s *Sandbox) connect() (err error) {
	if s.net, err = newNetNS(s.spec.Network.Mode); err != nil || s.spec.Network.Mode != isolation.NetworkEgress {
		return err
	}
	if s.engine.gateway == nil {
		return fmt.Errorf("create %s: the engine has no gateway for network egress", s.spec.ID)
	}
	s.port, err = s.engine.gateway.Attach(s.net.file, s.spec.IDBase, s.spec.Network)
	return err
}

// inBackground starts f in a goroutine, and returns a function that waits for its result.
func inBackground[T any](f func() (T, error)) func() (T, error) {
	once := sync.OnceValues(f)
	go once()
	return once
}

// mountRoot mounts the sandbox's root, a small tmpfs that belongs to root of the domains.
// Domains have it read-only; the daemon can write to it until it releases its own mount.
func (s *Sandbox) mountRoot() error {
	root := filepath.Join(s.engine.fs, "roots", s.spec.ID)
	if err := os.Mkdir(root, 0o711); err != nil {
		return fmt.Errorf("create the root of %s: %w", s.spec.ID, err)
	}
	data := fmt.Sprintf("mode=755,size=1m,nr_inodes=4096,uid=%d,gid=%d", s.spec.IDBase, s.spec.IDBase)
	if err := unix.Mount("root", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return errors.Join(&os.PathError{Op: "mount", Path: root, Err: err}, os.Remove(root))
	}
	s.root = root
	return nil
}

// fillRoot creates the mount points and links of the spec, and the files of its limits, in
// the root.
func (s *Sandbox) fillRoot() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("fill the root of %s: %w", s.spec.ID, err)
		}
	}()
	tree, err := openRootTree(s.root, s.spec.IDBase)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := s.fillLimits(tree); err != nil {
		return err
	}
	for _, dir := range append([]string{"/proc", "/dev", "/tmp"}, s.spec.Root.Dirs...) {
		if err := tree.mkdir(dir); err != nil {
			return err
		}
	}
	for i, m := range s.spec.Mounts {
		// A mounted directory is in the spec's Root already; create mount points for files only,
		// and not where another mount has them.
		if slices.ContainsFunc(s.spec.Mounts[:i], func(o isolation.Mount) bool { return strings.HasPrefix(m.Target, o.Target+"/") }) {
			continue
		}
		info, err := os.Stat(m.Sources[0])
		if err == nil && !info.IsDir() {
			err = tree.touch(m.Target)
		}
		if err != nil {
			return fmt.Errorf("create the mount point %s: %w", m.Target, err)
		}
	}
	for _, l := range s.spec.Root.Links {
		if err := tree.symlink(l.Target, l.Path); err != nil {
			return err
		}
	}
	return nil
}

// release releases the daemon's own mounts of root and /tmp. Domains keep theirs.
func (s *Sandbox) release() error {
	s.releaseMu.Lock()
	defer s.releaseMu.Unlock()
	if s.released {
		return nil
	}
	if s.tmp != nil {
		if v, err := s.tmp(); err == nil {
			v.Close()
		}
	}
	if m, err := s.owners(); err == nil {
		m.root.Close()
	}
	if s.root != "" {
		unmount := func() error { return unix.Unmount(s.root, unix.MNT_DETACH) }
		err := failpoint.Do(failpoint.UnmountRoot, unmount)
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: unmounted by an earlier call
			return &os.PathError{Op: "unmount", Path: s.root, Err: err}
		}
		if err := os.Remove(s.root); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s.released = true
	return nil
}

// ids returns the host ids of the sandbox user.
func (s *Sandbox) ids() (uid, gid uint32) {
	return s.spec.IDBase + isolation.UserID, s.spec.IDBase + isolation.GroupID
}

// GivePipes makes the sandbox user the owner of pipes. See supervisor.Box.
func (s *Sandbox) GivePipes(_ context.Context, pipes ...*os.File) error {
	uid, gid := s.ids()
	for _, f := range pipes {
		if err := f.Chown(int(uid), int(gid)); err != nil {
			return fmt.Errorf("give a pipe to %s: %w", s.spec.ID, err)
		}
	}
	return nil
}

// Files returns the files to freeze and to measure the sandbox. The sandbox still owns them.
// The start of a domain may append to them.
func (s *Sandbox) Files() []cgroup.File { return s.group.handle.Files() }

// ID returns the id of the sandbox.
func (s *Sandbox) ID() string { return s.spec.ID }

// Freeze stops every process of the sandbox. See supervisor.Box.
func (s *Sandbox) Freeze(ctx context.Context) error { return s.group.handle.SetFrozen(ctx, true) }

// Thaw undoes Freeze.
func (s *Sandbox) Thaw(ctx context.Context) error { return s.group.handle.SetFrozen(ctx, false) }

// SetThrottled turns the CPU quota on or off.
func (s *Sandbox) SetThrottled(_ context.Context, on bool) error { return s.group.throttle(on) }

// Kill sends SIGKILL to every process of the sandbox.
func (s *Sandbox) Kill(context.Context) error { return s.group.kill() }

// MemoryPeak returns the peak memory of the sandbox in bytes. See supervisor.Box.
func (s *Sandbox) MemoryPeak() (uint64, error) { return s.group.handle.MemoryPeak() }

// MemoryUsed returns the most memory that the processes had. See supervisor.Box.
func (s *Sandbox) MemoryUsed() (uint64, error) { return s.group.handle.MemoryUsed() }

// Usage returns what the sandbox has used so far.
func (s *Sandbox) Usage() (isolation.Usage, error) { return s.group.handle.Usage() }

// Listener returns the socket of the Runtime API inside the sandbox.
func (s *Sandbox) Listener() net.Listener { return s.net.listener }

// Lookups returns the sockets on which the sandbox sends name lookups, or nil without
// NetworkEgress. The sandbox owns them, and Close closes them.
func (s *Sandbox) Lookups() (udp net.PacketConn, tcp net.Listener) {
	return s.net.lookups.udp, s.net.lookups.tcp
}

// Allow lets the sandbox connect to services, given by their numbers
// (isolation.Policy.Services), at addresses that a name resolved to. valid is the rest of the
// record's lifetime. Without NetworkEgress it fails.
func (s *Sandbox) Allow(_ context.Context, services []int, addrs []netip.Addr, valid time.Duration) error {
	if s.port == nil {
		return s.noEgress()
	}
	return s.port.Allow(services, addrs, valid)
}

// Traffic returns what the sandbox has sent. Without NetworkEgress it fails.
func (s *Sandbox) Traffic() (isolation.Traffic, error) {
	if s.port == nil {
		return isolation.Traffic{}, s.noEgress()
	}
	return s.port.Traffic()
}

func (s *Sandbox) noEgress() error {
	return fmt.Errorf("sandbox %s has no network egress", s.spec.ID)
}

// Dial connects from inside the sandbox's network namespace.
func (s *Sandbox) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return s.net.dial(ctx, network, addr)
}

// PIDs returns the host process ids of the init handlers, by domain.
func (s *Sandbox) PIDs() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := map[string]int{}
	for name, d := range s.domains {
		if d.pid != 0 {
			pids[name] = d.pid
		}
	}
	return pids
}

// CgroupPath returns the sandbox's parent cgroup, below the host's mount point of each cgroup
// tree.
func (s *Sandbox) CgroupPath() string { return filepath.Join(s.engine.place.hosted, s.spec.ID) }

// Close kills all processes and removes the sandbox, in the reverse order of its creation. See
// supervisor.Box.
func (s *Sandbox) Close(ctx context.Context) error {
	s.closer.Lock()
	defer s.closer.Unlock()
	var errs []error
	if s.group != nil {
		errs = append(errs, s.group.kill())
	}
	s.mu.Lock()
	domains, gone := maps.Clone(s.domains), map[string]func() error{}
	var failed []*thread // creators of domains whose start, or the wait for whose exit, has failed
	for name, d := range domains {
		gone[name] = d.gone
		if d.gone == nil {
			failed = append(failed, d.creator)
		}
		if d.conn != nil {
			d.conn.Close()
			d.conn = nil
		}
	}
	s.mu.Unlock()
	for name, d := range domains {
		unreaped, err := d.end(ctx, gone[name])
		if unreaped {
			failed = append(failed, d.creator)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s of %s: %w", name, s.spec.ID, err))
			continue
		}
		s.mu.Lock()
		delete(s.domains, name)
		s.mu.Unlock()
	}
	failpoint.Pass(failpoint.HalfTornDown)
	errs = append(errs, s.release())
	if s.port != nil {
		errs = append(errs, s.port.Close())
	}
	if s.net != nil {
		s.net.Close()
	}
	if s.group != nil {
		errs = append(errs, s.group.remove(ctx, s.spec.Domains))
	}
	s.engine.processors.give(s.cpus)
	s.cpus = nil
	for _, t := range failed {
		errs = append(errs, t.reapOrphans(ctx))
	}
	err := errors.Join(errs...)
	if err == nil {
		s.engine.remains.forget(s)
	}
	return err
}
