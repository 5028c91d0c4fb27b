package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
)

// maxRevisions is the most revisions that can be registered at once, of about a kilobyte
// each, with an open file for each of their trees. It bounds the memory and the open files of
// the privileged process.
const maxRevisions = 8192

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

	// Program is what was found in the trees.
	Program function.Program
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
	role   uint16 // of message.Revision
	files  Files
	unused func() // ends the use of the pool's shape; from pool.Use

	users   int       // number of its sandboxes, plus one until it is retired; guarded by revisions.mu
	retired bool      // no more sandboxes may be created; guarded by revisions.mu
	used    time.Time // when it was registered, or had a sandbox, last; guarded by revisions.mu
}

// idle reports whether nothing would be lost if rev were retired. The caller holds
// revisions.mu.
func (rev *revision) idle() bool { return !rev.retired && rev.users == 1 }

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
	runtimes int // how many the operator has; 1 unless set before the first revision
	networks []Network
	roles    int                       // how many the operator has
	use      func(shape) (done func()) // marks a shape as in use until done; never nil
	report   func(error)               // receives the result of releasing a revision's files

	mu    sync.Mutex
	epoch uint64               // of all revisions; 0 before the first
	known map[uint64]*revision // by number
	last  map[shape]*revision  // the one registered last that is not retired
}

func newRevisions(networks []Network, use func(shape) func(), report func(error)) *revisions {
	return &revisions{runtimes: 1, networks: networks, use: use, report: report, known: map[uint64]*revision{}, last: map[shape]*revision{}}
}

// decode decodes and checks an encoded message.Revision.
func (r *revisions) decode(form []byte) (message.Revision, error) {
	m, err := message.DecodeRevision(form)
	if err == nil {
		err = m.Check(r.runtimes, len(isolation.Profiles()), len(r.networks), r.roles)
	}
	return m, err
}

// register registers a revision from its encoding (message.Revision), which it validates.
// It takes ownership of files, also if it fails. Registering the same revision again makes it
// one that was not retired, and has no other effect; with different content it is an error.
func (r *revisions) register(form []byte, files Files) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, files.close())
		}
	}()
	m, err := r.decode(form)
	if err != nil {
		return err
	}
	rev := &revision{id: m.ID, form: slices.Clone(form), role: m.Role, files: files, users: 1, used: time.Now()}
	rev.spec = specOf(m, isolation.Profiles()[m.Profile], r.networks[m.Network].Network, files)
	rev.shape = shape{extensions: files.Program.HasExtensions(), tmp: files.Tmp, seccomp: rev.spec.Seccomp, network: m.Network}

	r.mu.Lock()
	defer r.mu.Unlock()
	if old, err := r.same(m.ID, form); old != nil || err != nil {
		if err == nil {
			err = files.close()
		}
		return err
	}
	if len(r.known) >= maxRevisions {
		return fmt.Errorf("%w: %d revisions are registered", message.ErrTooMany, len(r.known))
	}
	r.epoch = m.ID.Epoch
	r.known[m.ID.Number] = rev
	r.activate(rev)
	return nil
}

// same returns the revision that is registered with that encoding, not retired any more, or
// nil. The caller holds r.mu.
func (r *revisions) same(id function.ID, form []byte) (*revision, error) {
	if r.epoch != 0 && r.epoch != id.Epoch {
		return nil, fmt.Errorf("%w: revision %v does not belong to the epoch %x", message.ErrRevision, id, r.epoch)
	}
	rev := r.known[id.Number]
	if rev == nil {
		return nil, nil
	}
	if !bytes.Equal(rev.form, form) {
		return nil, fmt.Errorf("%w: revision %v was registered with different content", message.ErrRevision, id)
	}
	rev.used = time.Now()
	if rev.retired {
		rev.retired = false
		rev.users++
		r.activate(rev)
	}
	return rev, nil
}

// activate lets the pool make sandboxes for rev. The caller holds r.mu.
func (r *revisions) activate(rev *revision) {
	r.last[rev.shape] = rev
	rev.unused = r.use(rev.shape)
}

// again is register for a revision that is registered already: it returns what was found in
// its files. ok is false if it is not registered.
func (r *revisions) again(id function.ID, form []byte) (program function.Program, ok bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev, err := r.same(id, form)
	if rev == nil {
		return program, false, err
	}
	return rev.files.Program, true, nil
}

// full reports whether there is no room for another revision.
func (r *revisions) full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.known) >= maxRevisions
}

// evict retires the revision without sandboxes that was used least recently, and reports
// whether there was one.
func (r *revisions) evict() bool {
	r.mu.Lock()
	var oldest *revision
	for _, rev := range r.known {
		if rev.idle() && (oldest == nil || rev.used.Before(oldest.used)) {
			oldest = rev
		}
	}
	if oldest == nil {
		r.mu.Unlock()
		return false
	}
	unused := r.deactivate(oldest)
	r.mu.Unlock()
	unused()
	r.release(oldest)
	return true
}

// forget retires the revision with that number if it has no sandboxes.
func (r *revisions) forget(number uint64) {
	r.mu.Lock()
	rev := r.known[number]
	if rev == nil || !rev.idle() {
		r.mu.Unlock()
		return
	}
	unused := r.deactivate(rev)
	r.mu.Unlock()
	unused()
	r.release(rev)
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
	if files.Program.HasExtensions() {
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

// roleOf returns the role of the revision with that number, 0 if it has none. The revision may be
// retired, as long as it has sandboxes.
func (r *revisions) roleOf(number uint64) uint16 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rev := r.known[number]; rev != nil {
		return rev.role
	}
	return 0
}

// release ends one use of rev.
func (r *revisions) release(rev *revision) {
	r.mu.Lock()
	rev.users--
	rev.used = time.Now()
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
	unused := r.deactivate(rev)
	r.mu.Unlock()
	unused()
	r.release(rev)
	return nil
}

// deactivate marks rev as retired. The caller holds r.mu. Without it, the caller calls unused
// and releases rev; meanwhile rev may be registered again.
func (r *revisions) deactivate(rev *revision) (unused func()) {
	rev.retired = true
	if r.last[rev.shape] != rev {
		return rev.unused
	}
	delete(r.last, rev.shape)
	for _, other := range r.known { // any will do: see prewarmedSpec
		if other.shape == rev.shape && !other.retired {
			r.last[rev.shape] = other
		}
	}
	return rev.unused
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
