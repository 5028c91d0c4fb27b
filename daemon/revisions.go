package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
)

// maxRevisions is the most revisions that can be registered at once, of about a kilobyte
// each. It bounds the memory of the privileged process.
const maxRevisions = 16384

// Network is a network that the operator offers, with the name by which functions choose it.
type Network struct {
	Name string
	isolation.Network
}

// Files are the files that the sandboxes of one revision share.
type Files struct {
	Tree   rootfs.Tree
	Tmp    string       // path of the image behind /tmp
	Prefix string       // of sandbox ids, which are names of cgroups; may be ""
	Close  func() error // releases the trees; may be nil
}

func (f *Files) close() error {
	if f.Close == nil {
		return nil
	}
	return f.Close()
}

// revision is the state of one registered revision. Fields are immutable unless they say
// otherwise.
type revision struct {
	id     function.ID
	form   []byte // encoded message.Revision that registered it
	spec   isolation.Spec
	shape  shape
	files  Files
	unused func() // ends the use of the pool's shape; from pool.Use

	users   int  // number of its sandboxes, plus one until it is retired; guarded by revisions.mu
	retired bool // no more sandboxes may be created; guarded by revisions.mu
}

// shape holds the properties that a sandbox gets when it is prewarmed
// (runc.Engine.Prepare). A prewarmed sandbox can become one of any revision of its shape.
type shape struct {
	extensions bool // it has an extension domain
	tmp        string
	seccomp    string
	network    uint16
}

// revisions are the registered revisions of the daemon. They are safe for concurrent use.
type revisions struct {
	networks []Network
	use      func(shape) (done func()) // marks a shape as in use until done; never nil
	report   func(error)               // receives the result of releasing a revision's files

	mu    sync.Mutex
	epoch uint64               // of all revisions; 0 before the first
	known map[uint64]*revision // by number
	last  map[shape]*revision  // the one registered last that is not retired
}

func newRevisions(networks []Network, use func(shape) func(), report func(error)) *revisions {
	return &revisions{networks: networks, use: use, report: report, known: map[uint64]*revision{}, last: map[shape]*revision{}}
}

// register registers a revision from its encoding (message.Revision), which it validates.
// It takes ownership of files, also if it fails. Registering the same revision again has no
// effect; with different content it is an error.
func (r *revisions) register(form []byte, files Files) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, files.close())
		}
	}()
	m, err := message.DecodeRevision(form)
	if err != nil {
		return err
	}
	profiles := isolation.Profiles()
	if err := m.Check(len(profiles), len(r.networks)); err != nil {
		return err
	}
	rev := &revision{id: m.ID, form: slices.Clone(form), files: files, users: 1}
	rev.spec = specOf(m, profiles[m.Profile], r.networks[m.Network].Network, files)
	rev.shape = shape{extensions: m.Extensions, tmp: files.Tmp, seccomp: rev.spec.Seccomp, network: m.Network}

	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch != 0 && r.epoch != m.ID.Epoch {
		return fmt.Errorf("%w: revision %v does not belong to the epoch %x", message.ErrRevision, m.ID, r.epoch)
	}
	if old := r.known[m.ID.Number]; old != nil {
		if !bytes.Equal(old.form, form) {
			return fmt.Errorf("%w: revision %v was registered with different content", message.ErrRevision, m.ID)
		}
		return files.close()
	}
	if len(r.known) >= maxRevisions {
		return fmt.Errorf("%w: %d revisions are registered", message.ErrTooMany, len(r.known))
	}
	r.epoch = m.ID.Epoch
	r.known[m.ID.Number] = rev
	r.last[rev.shape] = rev
	rev.unused = r.use(rev.shape)
	return nil
}

// specOf returns the spec of the revision's sandboxes, without ID and IDBase.
func specOf(m message.Revision, profile string, network isolation.Network, files Files) isolation.Spec {
	spec := isolation.Spec{
		Hostname: "sandbox", // in /etc/hosts of the sandbox
		Limits:   isolation.Limits{MemoryBytes: int64(m.MemoryMB) << 20, CPU: float64(m.MicroCPU) / 1e6, PIDs: int64(m.PIDs)},
		Domains:  []string{isolation.RuntimeDomain},
		Root:     isolation.Root{Dirs: files.Tree.Dirs},
		Tmp:      isolation.Tmp{Template: files.Tmp},
		Seccomp:  profile,
		Network:  network,
	}
	if m.Extensions {
		spec.Domains = append(spec.Domains, isolation.ExtensionDomain)
	}
	for _, l := range files.Tree.Links {
		spec.Root.Links = append(spec.Root.Links, isolation.Link(l))
	}
	spec.Mounts = mountsOf(files.Tree)
	return spec
}

// acquire returns the revision with that number for a new sandbox. The caller releases it
// when the sandbox is gone. The only error is message.ErrUnknownRevision.
func (r *revisions) acquire(number uint64) (*revision, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev := r.known[number]
	if rev == nil || rev.retired {
		return nil, fmt.Errorf("revision %d: %w", number, message.ErrUnknownRevision)
	}
	rev.users++
	return rev, nil
}

// release ends one use of rev.
func (r *revisions) release(rev *revision) {
	r.mu.Lock()
	rev.users--
	over := rev.users == 0
	if over {
		delete(r.known, rev.id.Number)
	}
	r.mu.Unlock()
	if over {
		r.report(rev.files.close())
	}
}

// retire ends the revision with that number: acquire no longer returns it. Once its last
// sandbox is gone, its files are released.
func (r *revisions) retire(number uint64) error {
	r.mu.Lock()
	rev := r.known[number]
	if rev == nil || rev.retired {
		r.mu.Unlock()
		return fmt.Errorf("revision %d: %w", number, message.ErrUnknownRevision)
	}
	rev.retired = true
	if r.last[rev.shape] == rev {
		delete(r.last, rev.shape)
		for _, other := range r.known { // any will do: see prewarmedSpec
			if other.shape == rev.shape && !other.retired {
				r.last[rev.shape] = other
			}
		}
	}
	r.mu.Unlock()
	rev.unused()
	r.release(rev)
	return nil
}

// prewarmedSpec returns the spec for a prewarmed sandbox of the shape s: that of the
// revision registered last. If this revision takes the sandbox, its limits need no change.
// ok is false if no revision has the shape any more.
func (r *revisions) prewarmedSpec(s shape) (spec isolation.Spec, prefix string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev := r.last[s]
	if rev == nil {
		return spec, "", false
	}
	return rev.spec, rev.files.Prefix, true
}

// close retires all revisions. A revision that still has sandboxes keeps its files.
func (r *revisions) close() {
	r.mu.Lock()
	numbers := slices.Collect(maps.Keys(r.known))
	r.mu.Unlock()
	for _, n := range numbers {
		_ = r.retire(n) // fails if it was retired before
	}
}

func mountsOf(t rootfs.Tree) (mounts []isolation.Mount) {
	for _, m := range t.Mounts {
		mounts = append(mounts, isolation.Mount(m))
	}
	return mounts
}
