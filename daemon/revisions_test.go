package daemon

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
)

// registry is a test's revisions, and what became of their files and shapes.
type registry struct {
	*revisions
	used, unused int
	closed       []string
}

func newRegistry(t *testing.T) *registry {
	g := &registry{}
	networks := []Network{{Name: "none", Network: isolation.Network{Mode: isolation.NetworkNone}}, {Name: "host", Network: isolation.Network{Mode: isolation.NetworkHost}}}
	g.revisions = newRevisions(networks, func(shape) func() { g.used++; return func() { g.unused++ } }, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	return g
}

// files are named, to see that they are given back.
func (g *registry) files(name string) Files {
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
	m := form(1, 128)
	m.Extensions = true
	if spec := specOf(*m, "", network, files); !slices.Equal(spec.Domains, []string{"runtime", "extension"}) {
		t.Errorf("with extensions: domains %v", spec.Domains)
	}
}

// A revision is kept as long as it is registered or has sandboxes, and its files with it.
func TestRevisionsLive(t *testing.T) {
	g := newRegistry(t)
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
	g := newRegistry(t)
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
	for name, tt := range map[string]struct {
		form []byte
		want string
	}{
		"other content":   {form(1, 256).Encode(), "different content"},
		"other epoch":     {other.Encode(), "does not belong to the epoch"},
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
