//go:build integration

package serve

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/message"
)

// Root makes sandboxes of the revisions that the control process has registered, wants each
// file once, and tells what it has found in it.
func TestRegister(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	code := d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))
	layer := d.put(zipOf(t, map[string]string{"extensions/watcher": "#!/bin/sh\n"}))
	d.fail("unknown revision", "worker/create?n=7", nil)

	first := d.register(revision(7, code))
	if first.Sent != 1 || first.Program.Bootstrap.Path != "/var/task/bootstrap" || len(first.Program.Extensions) != 0 || first.Program.Locale == "" {
		t.Errorf("%+v", first)
	}
	if again := d.register(revision(7, code)); again.Sent != 0 || again.Program.Bootstrap.Path != first.Program.Bootstrap.Path {
		t.Errorf("the same again: %+v", again)
	}
	withLayer := d.register(revision(8, code, layer))
	if withLayer.Sent != 1 || !slices.Equal(withLayer.Program.Extensions, []string{"watcher"}) {
		t.Errorf("with a layer: %+v", withLayer)
	}
	other := revision(7, code)
	other.MemoryMB = 256
	d.fail("revision", "control/register", form(t, other))

	d.succeed("worker/create?n=7", nil)
	d.succeed("worker/create?n=8", nil)
	d.succeed("control/forget?n=7", nil) // has a sandbox
	d.succeed("worker/create?n=7", nil)
	d.succeed("worker/retire?n=7", nil)
	d.fail("unknown revision", "worker/create?n=7", nil)
	d.register(revision(7, code)) // its sandboxes run: it is taken back
	d.succeed("worker/create?n=7", nil)
	d.fail("unknown revision", "worker/retire?n=9", nil)
	for range 4 {
		d.succeed("worker/close", nil)
	}
	for _, n := range []int{7, 8} {
		d.succeed(fmt.Sprintf("control/forget?n=%d", n), nil)
		d.fail("unknown revision", fmt.Sprintf("worker/create?n=%d", n), nil)
	}
	if again := d.register(revision(8, code, layer)); again.Sent != 0 {
		t.Errorf("%d files were sent of trees that the store has", again.Sent)
	}
}

// Whatever a control process that was taken over sends, root keeps to its rules.
func TestRegisterHostile(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	code := d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))
	change := func(f func(*message.Revision)) []byte {
		rev := revision(7, code)
		f(&rev)
		return form(t, rev)
	}
	for name, rev := range map[string][]byte{
		"no code":                 change(func(r *message.Revision) { r.Code = message.Digest{} }),
		"a layer that is none":    change(func(r *message.Revision) { r.Layers = make([]message.Digest, 1) }),
		"a runtime that is none":  change(func(r *message.Revision) { r.Runtime = 1 }),
		"a network that is none":  change(func(r *message.Revision) { r.Network = 1 }),
		"a role that is none":     change(func(r *message.Revision) { r.Role = 3 }),
		"a profile that is none":  change(func(r *message.Revision) { r.Profile = 99 }),
		"all memory":              change(func(r *message.Revision) { r.MemoryMB = 1 << 31 }),
		"all processes":           change(func(r *message.Revision) { r.PIDs = 1 << 31 }),
		"a /tmp beyond all disks": change(func(r *message.Revision) { r.TmpMB = 1 << 31 }),
	} {
		t.Run(name, func(t *testing.T) { d.fail("revision", "control/register", rev) })
	}
	other := d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\nother\n"}))
	text := d.put([]byte("this is no zip"))
	bomb := d.put(zipOf(t, map[string]string{"bootstrap": "", "zeros": string(make([]byte, 251<<20))}))
	escape := d.put(zipOf(t, map[string]string{"../../escape": "x"}))
	for name, c := range map[string]struct {
		digest     message.Digest
		file, kind string
	}{
		"another file":      {code, hexOf(other), "digest"},
		"no zip":            {text, hexOf(text), "package"},
		"a bomb":            {bomb, hexOf(bomb), "too large"},
		"a way out":         {escape, hexOf(escape), "package"},
		"a pipe":            {code, "pipe", "package"},
		"a folder":          {code, "folder", "package"},
		"an unreadable one": {code, "write-only", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := d.do("control/register?file="+c.file, form(t, revision(7, c.digest)))
			if s.Error == "" || c.kind != "" && !slices.Contains(s.Kinds, c.kind) {
				t.Errorf("%+v, want an error of the kind %q", s, c.kind)
			}
		})
	}
	d.fail("unknown revision", "worker/create?n=7", nil)
	entries, err := os.ReadDir(filepath.Join(d.Folders.State, "packages", "sha256"))
	if err != nil || len(entries) > 1 { // the template of /tmp at most
		t.Errorf("%d entries in the store, %v", len(entries), err)
	}
	d.register(revision(7, code)) // it still works
	d.succeed("worker/create?n=7", nil)
}

// The operator's bounds on disk hold against a control process that was taken over.
func TestRegisterBounds(t *testing.T) {
	f := harness.NewFolders(t)
	d := start(t, f, fmt.Sprint("--tree-bytes=", 25<<20))
	var large []message.Digest
	for i := range 4 {
		large = append(large, d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n", "data": string(bytes.Repeat([]byte{byte(i)}, 10<<20))})))
	}
	for i, digest := range large[:3] { // the third takes the place of the first, which has no sandbox
		d.register(revision(uint64(i+1), digest))
	}
	d.fail("unknown revision", "worker/create?n=1", nil)
	d.succeed("worker/create?n=2", nil)
	d.succeed("worker/create?n=3", nil)
	d.fail("too many", "control/register", form(t, revision(4, large[3])))
	d.register(revision(5, large[2])) // has no tree of its own
	d.succeed("worker/close", nil)
	d.register(revision(4, large[3]))
	d.Stop()

	d = start(t, f, fmt.Sprint("--free-bytes=", int64(1)<<60))
	d.register(revision(1, large[3])) // is there already
	fresh := d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\nfresh\n"}))
	d.fail("no space", "control/register", form(t, revision(2, fresh)))
}

// A runtime of the operator's has layers below those of functions. A function whose client is
// nowhere is refused with the cure.
func TestRuntimeOfOperator(t *testing.T) {
	layer := filepath.Join(t.TempDir(), "client.zip")
	harness.WriteFile(t, layer, zipOf(t, map[string]string{"python/awslambdaric/__main__.py": "client = 'operator'\n"}), 0o644)
	empty := filepath.Join(t.TempDir(), "empty.zip")
	harness.WriteFile(t, empty, zipOf(t, map[string]string{"x": ""}), 0o644)
	app := map[string]string{"app.py": "def handler(event, context): return 1\n"}
	python := func(number uint64, code message.Digest) message.Revision {
		rev := revision(number, code)
		rev.Runtime = 1
		return rev
	}
	t.Run("with a client", func(t *testing.T) {
		d := start(t, harness.NewFolders(t), "--layers="+layer)
		if r := d.register(python(1, d.put(zipOf(t, app)))); r.Program.Bootstrap.Path != "/var/runtime/bootstrap" {
			t.Errorf("%+v", r)
		}
		d.succeed("worker/create?n=1", nil)
		scratch := filepath.Join(d.Folders.Run, d.Instance, "scratch")
		before, err := os.ReadDir(scratch)
		if err != nil {
			t.Fatal(err)
		}
		d.succeed("worker/close", nil)
		d.succeed("control/forget?n=1", nil)
		after, err := os.ReadDir(scratch)
		if err != nil || len(after) != len(before)-1 {
			t.Errorf("%d folders were made for the function and the base, %d are left; %v", len(before), len(after), err)
		}
	})
	t.Run("without", func(t *testing.T) {
		d := start(t, harness.NewFolders(t), "--layers="+empty)
		s := d.do("control/register", form(t, python(1, d.put(zipOf(t, app)))))
		if !strings.Contains(s.Error, "sandboxd layer python3.11") {
			t.Errorf("%+v does not name the cure", s)
		}
		own := map[string]string{"awslambdaric/__main__.py": ""}
		if r := d.register(python(2, d.put(zipOf(t, own)))); r.Program.Bootstrap.Path != "/var/runtime/bootstrap" {
			t.Errorf("with a client of its own: %+v", r)
		}
	})
}

// The worker's questions reach the control process, and a switch the worker, over connections
// that root hands out.
func TestQuestions(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	for path, want := range map[string]string{
		"resolve?name=known":          `1/7`,
		"resolve?name=other":          "ResourceNotFoundException",
		"environment?revision=12":     `"REVISION":"12"`,
		"environment?revision=twelve": "a revision is a number",
		"nothing":                     "404",
	} {
		if got := d.question("GET", path, ""); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	for body, want := range map[string]string{`{"AccessKeyID":"known"}`: `"Known":true`, `{`: "400"} {
		if got := d.question("POST", "verify", body); !strings.Contains(got, want) {
			t.Errorf("verify %s: %s, want %s", body, got, want)
		}
	}
	d.succeed("control/switch?name=hello", nil)
	var switches []message.Switch
	if err := json.Unmarshal(d.succeed("worker/switches", nil).Said, &switches); err != nil || !slices.Equal(switches, []message.Switch{{Name: "hello", Number: 7}}) {
		t.Errorf("the worker was told %+v, %v", switches, err)
	}
}

// A worker that was taken over gets the credentials of the roles of sandboxes that it has, and no
// others, whatever it asks for.
func TestCredentialsOfTakenOverWorker(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	code := d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))
	for n, want := range map[uint64]string{5: `["","",""]`, 6: `["two","two",""]`} {
		rev := revision(n, code)
		if n == 6 {
			rev.Role = 2
		}
		d.register(rev)
		d.succeed(fmt.Sprintf("worker/create?n=%d", n), nil)
		if said := d.succeed("worker/credentials", nil); string(said.Said) != want {
			t.Errorf("revision %d: %s, want %s", n, said.Said, want)
		}
	}
	d.succeed("worker/close", nil)
	d.succeed("worker/close", nil)
}
