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

// maxRevisions is how many revisions root knows at most, of about a kilobyte each. A store
// has more functions than are in use at once.
const maxRevisions = 16384

// Network is a network that the operator has, by the name that functions know.
type Network struct {
	Name string
	isolation.Network
}

// Files are what the sandboxes of one revision see as files.
type Files struct {
	Tree   rootfs.Tree
	Tmp    string       // path of the image behind /tmp
	Prefix string       // first part of sandbox ids, which name cgroups; may be ""
	Close  func() error // gives the trees back; nil if there is nothing to give back
}

func (f *Files) close() error {
	if f.Close == nil {
		return nil
	}
	return f.Close()
}

// revision is what root knows of one revision. What it was registered with never changes.
type revision struct {
	id     function.ID
	form   []byte // the message that it was registered with
	spec   isolation.Spec
	shape  shape
	files  Files
	unused func() // of the pool's shape; see pool.Use

	users   int  // its sandboxes, and one while it is registered; guarded by revisions.mu
	retired bool // it makes no more sandboxes; guarded by revisions.mu
}

// shape is what a sandbox has that is made ahead of need (runc.Engine.Prepare): sandboxes
// of all revisions of one shape are assigned the same prewarmed sandboxes.
type shape struct {
	extensions bool // there is an extension domain
	tmp        string
	seccomp    string
	network    uint16
}

// revisions are those that root knows. Safe for concurrent use.
type revisions struct {
	networks []Network
	use      func(shape) (done func()) // says that a shape is in use; never nil
	report   func(error)               // is told of trees that could not be given back

	mu    sync.Mutex
	epoch uint64 // of all that are known; 0 before the first
	known map[uint64]*revision
	last  map[shape]*revision // of those known, the one that was registered last
}

func newRevisions(networks []Network, use func(shape) func(), report func(error)) *revisions {
	return &revisions{networks: networks, use: use, report: report, known: map[uint64]*revision{}, last: map[shape]*revision{}}
}

// register takes a revision in the form that it has between processes (message.Revision),
// which it checks, with its files, which it owns from then on, also when it fails. To
// register a revision again is no error, unless it has another content.
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
		return fmt.Errorf("%w: revision %v is of another epoch than %x", message.ErrRevision, m.ID, r.epoch)
	}
	if old := r.known[m.ID.Number]; old != nil {
		if !bytes.Equal(old.form, form) {
			return fmt.Errorf("%w: revision %v is known with another content", message.ErrRevision, m.ID)
		}
		return files.close()
	}
	if len(r.known) >= maxRevisions {
		return fmt.Errorf("%w: %d revisions are known already", message.ErrTooMany, len(r.known))
	}
	r.epoch = m.ID.Epoch
	r.known[m.ID.Number] = rev
	r.last[rev.shape] = rev
	rev.unused = r.use(rev.shape)
	return nil
}

// specOf says what a sandbox of the revision is made of, without ID and IDBase.
func specOf(m message.Revision, profile string, network isolation.Network, files Files) isolation.Spec {
	spec := isolation.Spec{
		Hostname: "sandbox", // /etc/hosts inside knows it
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
	for _, m := range files.Tree.Mounts {
		spec.Mounts = append(spec.Mounts, isolation.Mount(m))
	}
	return spec
}

// acquire returns the revision of that number for a sandbox, which gives it back with
// release when it is gone. The error is message.ErrUnknownRevision.
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

// retire ends the revision of that number: no more sandboxes are made of it, and it is
// forgotten, and its trees are given back, when the last that it has is gone.
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
		for _, other := range r.known { // which one does not matter: see prewarmedSpec
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

// prewarmedSpec is what to make a prewarmed sandbox of that shape from: the revision that asked for one last,
// whose limits then need not be changed. ok is false if no revision has the shape any more.
func (r *revisions) prewarmedSpec(s shape) (spec isolation.Spec, prefix string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev := r.last[s]
	if rev == nil {
		return spec, "", false
	}
	return rev.spec, rev.files.Prefix, true
}

// close retires all revisions. What still has sandboxes keeps its trees.
func (r *revisions) close() {
	r.mu.Lock()
	numbers := slices.Collect(maps.Keys(r.known))
	r.mu.Unlock()
	for _, n := range numbers {
		_ = r.retire(n) // it was retired already
	}
}
