package daemon

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
)

// watched is a test's revisions, and what became of their files and shapes.
type watched struct {
	*revisions
	used, unused int
	closed       []string
}

func newWatched(t *testing.T) *watched {
	g := &watched{}
	networks := []Network{{Name: "none", Network: isolation.Network{Mode: isolation.NetworkNone}}, {Name: "host", Network: isolation.Network{Mode: isolation.NetworkHost}}}
	g.revisions = newRevisions(networks, func(shape) func() { g.used++; return func() { g.unused++ } }, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	return g
}

// files are named, to see that they are given back.
func (g *watched) files(name string) Files {
	return Files{Tmp: "/t.ext4", Prefix: name, Close: func() error { g.closed = append(g.closed, name); return nil }}
}

func form(number uint64, memory uint32) *message.Revision {
	return &message.Revision{ID: function.ID{Epoch: 5, Number: number}, MemoryMB: memory, TmpMB: 512, MicroCPU: 72357, PIDs: 1024}
}

func TestSpecOf(t *testing.T) {
	files := Files{Tmp: "/t.ext4", Tree: rootfs.Tree{
		Dirs:   []string{"/usr"},
		Links:  []rootfs.Link{{Path: "/lib", Target: "usr/lib"}},
		Mounts: []rootfs.Mount{{Target: "/usr", Sources: []string{"/usr"}}},
	}}
	network := isolation.Network{Mode: isolation.NetworkHost}
	spec := specOf(*form(1, 10240), "debug", network, files)
	if spec.Limits != (isolation.Limits{MemoryBytes: 10 << 30, CPU: 0.072357, PIDs: 1024}) { // ENV-32, ENV-34
		t.Errorf("limits %+v", spec.Limits)
	}
	if !slices.Equal(spec.Domains, []string{"runtime"}) || spec.Tmp.Template != "/t.ext4" || len(spec.Mounts) != 1 || spec.Root.Links[0].Target != "usr/lib" ||
		spec.Seccomp != "debug" || spec.Network.Mode != isolation.NetworkHost {
		t.Errorf("%+v", spec)
	}
	files.Program.Extensions = []string{"watcher"}
	if spec := specOf(*form(1, 128), "", network, files); !slices.Equal(spec.Domains, []string{"runtime", "extension"}) {
		t.Errorf("with extensions: domains %v", spec.Domains)
	}
}

// A revision is kept as long as it is registered or has sandboxes, and its files with it.
func TestRevisionsLive(t *testing.T) {
	g := newWatched(t)
	if err := g.register(form(1, 128).Encode(), g.files("a")); err != nil {
		t.Fatal(err)
	}
	if err := g.register(form(2, 256).Encode(), g.files("b")); err != nil {
		t.Fatal(err)
	}
	a, err := g.acquire(1)
	if err != nil || a.spec.Limits.MemoryBytes != 128<<20 {
		t.Fatalf("%+v, %v", a, err)
	}
	if _, err := g.acquire(3); !errors.Is(err, message.ErrUnknownRevision) {
		t.Errorf("an unknown one: %v", err)
	}
	if spec, prefix, ok := g.prewarmedSpec(a.shape); !ok || prefix != "b" || spec.Limits.MemoryBytes != 256<<20 {
		t.Errorf("prewarmed sandboxes are made as %q, %v", prefix, spec.Limits)
	}
	if err := g.retire(2); err != nil {
		t.Fatal(err)
	}
	if _, prefix, ok := g.prewarmedSpec(a.shape); !ok || prefix != "a" {
		t.Errorf("prewarmed sandboxes are made as %q when b has ended", prefix)
	}
	if err := g.retire(1); err != nil {
		t.Fatal(err)
	}
	if _, err := g.acquire(1); !errors.Is(err, message.ErrUnknownRevision) {
		t.Errorf("one that has ended: %v", err)
	}
	if err := g.retire(1); !errors.Is(err, message.ErrUnknownRevision) {
		t.Errorf("ended twice: %v", err)
	}
	if _, _, ok := g.prewarmedSpec(a.shape); ok {
		t.Error("prewarmed sandboxes are made for nobody")
	}
	if !slices.Equal(g.closed, []string{"b"}) {
		t.Errorf("files of %q are given back, while a has a sandbox", g.closed)
	}
	g.release(a)
	if !slices.Equal(g.closed, []string{"b", "a"}) || len(g.known) != 0 || g.used != 2 || g.unused != 2 {
		t.Errorf("files of %q are given back; %d are known; %d shapes in use, %d given up", g.closed, len(g.known), g.used, g.unused)
	}
}

// What is registered again is the same or refused; nothing that is refused keeps its files.
func TestRevisionsRefuse(t *testing.T) {
	g := newWatched(t)
	first := form(1, 128).Encode()
	if err := g.register(first, g.files("first")); err != nil {
		t.Fatal(err)
	}
	if err := g.register(first, g.files("again")); err != nil {
		t.Errorf("the same again: %v", err)
	}
	other := form(2, 128)
	other.ID.Epoch = 6
	network := form(3, 128)
	network.Network = 2
	runtime := form(5, 128)
	runtime.Runtime = 1
	for name, tt := range map[string]struct {
		form []byte
		want string
	}{
		"other content":   {form(1, 256).Encode(), "different content"},
		"other epoch":     {other.Encode(), "does not belong to the epoch"},
		"no runtime":      {runtime.Encode(), "no runtime 1"},
		"no network":      {network.Encode(), "no network 2"},
		"too much memory": {form(4, 1<<31).Encode(), "memory"},
		"no form":         {first[1:], "bytes"},
	} {
		if err := g.register(tt.form, g.files(name)); !errors.Is(err, message.ErrRevision) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if !slices.Contains(g.closed, name) {
			t.Errorf("%s: its files are kept", name)
		}
	}
	if slices.Contains(g.closed, "first") || !slices.Contains(g.closed, "again") || len(g.known) != 1 {
		t.Errorf("files of %q are given back, %d revisions are known", g.closed, len(g.known))
	}
	for n := range maxRevisions - 1 {
		if err := g.register(form(uint64(n)+10, 128).Encode(), Files{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.register(form(9, 128).Encode(), g.files("one too many")); !errors.Is(err, message.ErrTooMany) {
		t.Errorf("one more than %d: %v", maxRevisions, err)
	}
	g.close()
	if len(g.known) != 0 || !slices.Contains(g.closed, "first") {
		t.Errorf("after close %d are known, and the files of %q given back", len(g.known), g.closed)
	}
}

// A revision that was retired and still has a sandbox is taken back by registering it again.
func TestRevisionsTakenBack(t *testing.T) {
	g := newWatched(t)
	one := form(1, 128)
	files := g.files("one")
	files.Program.Locale = "C.UTF-8"
	if _, ok, err := g.again(one.ID, one.Encode()); ok || err != nil {
		t.Errorf("before it is registered: %v, %v", ok, err)
	}
	if err := g.register(one.Encode(), files); err != nil {
		t.Fatal(err)
	}
	held, err := g.acquire(1)
	if err == nil {
		err = g.retire(1)
	}
	if err != nil {
		t.Fatal(err)
	}
	if program, ok, err := g.again(one.ID, one.Encode()); !ok || err != nil || program.Locale != "C.UTF-8" {
		t.Errorf("%+v, %v, %v", program, ok, err)
	}
	if _, _, err := g.again(one.ID, form(1, 256).Encode()); !errors.Is(err, message.ErrRevision) {
		t.Errorf("with other content: %v", err)
	}
	g.release(held)
	if len(g.closed) != 0 || g.used != 2 || g.unused != 1 {
		t.Fatalf("files of %q are given back; %d shapes in use, %d given up", g.closed, g.used, g.unused)
	}
	if held, err = g.acquire(1); err != nil {
		t.Fatal(err)
	}
	g.release(held)
	if err := g.retire(1); err != nil || !slices.Equal(g.closed, []string{"one"}) {
		t.Errorf("%v; files of %q are given back", err, g.closed)
	}
}

// Revisions with sandboxes stay, and of the others the one goes first that was used least
// recently.
func TestRevisionsEvicted(t *testing.T) {
	g := newWatched(t)
	for n, name := range []string{"a", "b", "c"} {
		if err := g.register(form(uint64(n+1), 128).Encode(), g.files(name)); err != nil {
			t.Fatal(err)
		}
	}
	for n, ago := range []time.Duration{3, 2, 1} {
		g.known[uint64(n+1)].used = time.Now().Add(-ago * time.Hour)
	}
	a, err := g.acquire(1)
	if err != nil {
		t.Fatal(err)
	}
	g.forget(1)
	g.forget(9)
	if !g.evict() || !slices.Equal(g.closed, []string{"b"}) {
		t.Errorf("%q are gone, want b", g.closed)
	}
	g.release(a)
	if !g.evict() || !slices.Equal(g.closed, []string{"b", "c"}) {
		t.Errorf("%q are gone, want b and c", g.closed)
	}
	if a, err = g.acquire(1); err != nil || g.evict() {
		t.Errorf("one with a sandbox is gone; %v", err)
	}
	g.release(a)
	g.forget(1)
	if g.evict() || len(g.known) != 0 || g.used != g.unused {
		t.Errorf("%d are left", len(g.known))
	}
}

func TestSandboxIDs(t *testing.T) {
	for name, want := range map[string]string{
		"function": "function-", "My_Func": "my-func-", strings.Repeat("x", 64): strings.Repeat("x", 31) + "-", "_": "", "--a--": "a-",
	} {
		id, err := sandboxID(idPrefix(name))
		if err != nil || !strings.HasPrefix(id, want) || len(id) != len(want)+8 || len(id) > 40 {
			t.Errorf("%s: %q, %v; want %s and eight digits", name, id, err, want)
		}
	}
}
