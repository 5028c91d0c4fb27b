package image

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// TestConfig (ENV-24, ENV-25, FE-02, FE-03): what is started, where, and with what.
func TestConfig(t *testing.T) {
	script := func(name string) entry { return fileMode(name, 0o755, "#!/bin/sh\n") }
	layer := baseLayer(t, script("usr/local/bin/tool"), script("opt/tools/tool"), fileMode("usr/bin/tool", 0o644, "#!/bin/sh\n"),
		script("lambda-entrypoint.sh"), script("var/task/app/run"), dir("home/user"), dirMode("secret", 0o700), script("secret/main"),
		link("start", "opt/tools/tool"), file("notes", "x"), fileMode("junk", 0o755, "junk"), script("var/top"), dir("usr/bin/adir"))
	for _, test := range []struct {
		name      string
		cfg       v1.Config
		env       map[string]string
		bootstrap string
		args      []string
		dir       string
		handler   string
		kind      error
	}{
		{name: "absolute", cfg: v1.Config{Entrypoint: []string{"/main", "-v"}, Cmd: []string{"a b", ""}}, bootstrap: "/main", args: []string{"-v", "a b", ""}, dir: "/"},
		{name: "command only", cfg: v1.Config{Cmd: []string{"/main"}}, bootstrap: "/main", dir: "/"},
		{name: "a file of /var", cfg: v1.Config{Cmd: []string{"/var/top"}}, bootstrap: "/var/top", dir: "/"},
		{name: "Lambda's base image", cfg: v1.Config{Entrypoint: []string{"/lambda-entrypoint.sh"}, Cmd: []string{"app.handler"}, WorkingDir: "/var/task"},
			bootstrap: "/lambda-entrypoint.sh", args: []string{"app.handler"}, dir: "/var/task", handler: "app.handler"},
		{name: "Lambda's base image without a command", cfg: v1.Config{Entrypoint: []string{"/lambda-entrypoint.sh"}}, bootstrap: "/lambda-entrypoint.sh", dir: "/"},
		{name: "own client", cfg: v1.Config{Entrypoint: []string{"/main"}, Cmd: []string{"app.handler"}}, bootstrap: "/main", args: []string{"app.handler"}, dir: "/"},
		{name: "in the usual PATH", cfg: v1.Config{Cmd: []string{"tool"}}, bootstrap: "/usr/local/bin/tool", dir: "/"},
		{name: "in the image's PATH", cfg: v1.Config{Cmd: []string{"tool"}, Env: []string{"PATH=rel::/no/such:/opt/tools:/usr/local/bin"}}, bootstrap: "/opt/tools/tool", dir: "/"},
		{name: "in the customer's PATH", cfg: v1.Config{Cmd: []string{"tool"}, Env: []string{"PATH=/opt/tools"}}, env: map[string]string{"PATH": "/usr/local/bin"}, bootstrap: "/usr/local/bin/tool", dir: "/"},
		{name: "past what cannot run", cfg: v1.Config{Cmd: []string{"tool"}, Env: []string{"PATH=/usr/bin:/opt/tools"}}, bootstrap: "/opt/tools/tool", dir: "/"},
		{name: "below the working directory", cfg: v1.Config{Cmd: []string{"app/run"}, WorkingDir: "/var/task"}, bootstrap: "/var/task/app/run", dir: "/var/task"},
		{name: "through a link", cfg: v1.Config{Cmd: []string{"/start"}}, bootstrap: "/start", dir: "/"},
		{name: "relative working directory", cfg: v1.Config{Cmd: []string{"/main"}, WorkingDir: "home/user/"}, bootstrap: "/main", dir: "/home/user"},
		{name: "in /tmp", cfg: v1.Config{Cmd: []string{"/main"}, WorkingDir: "/tmp"}, bootstrap: "/main", dir: "/tmp"},

		{name: "nothing to start", kind: invalid.ErrNoBootstrap},
		{name: "empty name", cfg: v1.Config{Cmd: []string{""}}, kind: invalid.ErrNoBootstrap},
		{name: "missing", cfg: v1.Config{Cmd: []string{"/no/such"}}, kind: invalid.ErrNoBootstrap},
		{name: "not in PATH", cfg: v1.Config{Cmd: []string{"no-such"}}, kind: invalid.ErrNoBootstrap},
		{name: "not executable in PATH", cfg: v1.Config{Cmd: []string{"tool"}, Env: []string{"PATH=/usr/bin"}}, kind: invalid.ErrNotExecutable},
		{name: "a directory in PATH", cfg: v1.Config{Cmd: []string{"adir"}, Env: []string{"PATH=/usr/bin"}}, kind: invalid.ErrNotExecutable},
		{name: "not executable", cfg: v1.Config{Cmd: []string{"/notes"}}, kind: invalid.ErrNotExecutable},
		{name: "no program", cfg: v1.Config{Cmd: []string{"/junk"}}, kind: invalid.ErrNotExecutable},
		{name: "for its owner only", cfg: v1.Config{Cmd: []string{"/secret/main"}}, kind: invalid.ErrNotExecutable},
		{name: "no such working directory", cfg: v1.Config{Cmd: []string{"/main"}, WorkingDir: "/no/such"}, kind: invalid.ErrWorkingDir},
		{name: "working directory is a file", cfg: v1.Config{Cmd: []string{"/main"}, WorkingDir: "/notes"}, kind: invalid.ErrWorkingDir},
		{name: "working directory of another user", cfg: v1.Config{Cmd: []string{"/main"}, WorkingDir: "/secret"}, kind: invalid.ErrWorkingDir},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.User = "1234:1234" // ENV-28: ignored
			f, err := newEnv(t).prepare(t, Options{Image: writeLayout(t, indexOf(makeImage(t, test.cfg, layer))), Env: test.env})
			if test.kind != nil {
				var bad *invalid.Error
				if !errors.As(err, &bad) || bad.Kind != test.kind {
					t.Errorf("got %v, want kind %v", err, test.kind)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if f.Bootstrap != test.bootstrap || !slices.Equal(f.BootstrapArgs, test.args) || f.WorkingDir != test.dir || f.Handler != test.handler {
				t.Errorf("got %q %q in %q, handler %q", f.Bootstrap, f.BootstrapArgs, f.WorkingDir, f.Handler)
			}
			if !slices.Equal(f.Entrypoint, test.cfg.Entrypoint) || !slices.Equal(f.Cmd, test.cfg.Cmd) || f.ConfiguredDir != test.cfg.WorkingDir {
				t.Errorf("for LOG-33: %q %q %q", f.Entrypoint, f.Cmd, f.ConfiguredDir)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	for _, test := range []struct {
		name     string
		image    []string
		customer map[string]string
		want     map[string]string
	}{
		{"nothing", nil, nil, map[string]string{"PATH": searchPath}},
		{"the image's", []string{"PATH=/bin", "A=1=2", "B="}, nil, map[string]string{"PATH": "/bin", "A": "1=2", "B": ""}},
		{"the customer's win", []string{"A=1", "B=2"}, map[string]string{"A": "3", "PATH": "/x"}, map[string]string{"A": "3", "B": "2", "PATH": "/x"}},
		{"the last one wins", []string{"A=1", "A=2"}, nil, map[string]string{"A": "2", "PATH": searchPath}},
		{"no variables", []string{"A", "", "=x", "B=\x00"}, nil, map[string]string{"PATH": searchPath}},
	} {
		if got := environment(test.image, test.customer); !maps.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

// TestTree: a sandbox sees the whole image, with /etc made ours.
func TestTree(t *testing.T) {
	e := newEnv(t)
	img := makeImage(t, mainConfig, baseLayer(t, file("etc/passwd", "evil:x:0:0::/:/bin/sh\n"), file("etc/app.conf", "1"), dir("empty"), dir("opt/extensions"),
		fileMode("opt/extensions/ext", 0o755, "#!/bin/sh\n"), file("var/task/app", "1"), fileMode("var/task/hidden", 0o600, "1"), file("var/lib/x", "1"), link("var/run", "/run"),
		fileMode("app/hidden", 0o700, "1"), fileMode("root/hidden", 0o600, "1"),
		link("lib", "usr/lib"), file("proc/x", ""), file("tmp/x", ""), file("dev/x", ""), file("sys/x", "")))
	f, err := e.prepare(t, Options{Image: writeLayout(t, indexOf(img))})
	if err != nil {
		t.Fatal(err)
	}
	tree := e.trees(t)[0]
	var got []string
	for _, m := range f.Mounts {
		if m.Target == "/etc" {
			if passwd, err := os.ReadFile(filepath.Join(m.Sources[0], "passwd")); err != nil || !strings.HasPrefix(string(passwd), "sbx_user1051:x:993:") || !strings.Contains(string(passwd), "\nevil:") {
				t.Errorf("passwd is %q, %v", passwd, err)
			}
			if _, err := os.Stat(filepath.Join(m.Sources[0], "app.conf")); err != nil {
				t.Error(err)
			}
			continue
		}
		if want := tree + m.Target; len(m.Sources) != 1 || m.Sources[0] != want {
			t.Errorf("%s shows %q, want %s", m.Target, m.Sources, want)
		}
		got = append(got, m.Target)
	}
	slices.Sort(got)
	if want := []string{"/app", "/bin", "/main", "/opt", "/root", "/var/lib", "/var/task"}; !slices.Equal(got, want) {
		t.Errorf("mounts are %q, want %q", got, want)
	}
	if want := []rootfs.Link{{Path: "/lib", Target: "usr/lib"}, {Path: "/var/run", Target: "/run"}}; !slices.Equal(f.Links, want) {
		t.Errorf("links are %v", f.Links)
	}
	if slices.Contains(f.Dirs, "/main") || !slices.Contains(f.Dirs, "/empty") || !slices.Contains(f.Dirs, "/var/lib") {
		t.Errorf("directories are %q", f.Dirs)
	}
	if !slices.Equal(f.Extensions, []string{"ext"}) {
		t.Errorf("extensions are %q", f.Extensions)
	}
	if len(f.Warnings) != 2 || !strings.Contains(f.Warnings[0], "/app/hidden") || !strings.Contains(f.Warnings[1], "/var/task/hidden") {
		t.Errorf("warnings are %q", f.Warnings)
	}
}

// TestHostileRootTree (security requirements, Starting a sandbox on a hostile root
// tree): links in the places that the engine needs are refused, or not looked at, or links of
// the sandbox that nothing is mounted at or below.
func TestHostileRootTree(t *testing.T) {
	for _, name := range []string{"proc", "sys", "dev", "tmp", "etc", "var", "var/task", "var/runtime", "opt"} {
		for _, target := range []string{"/", "/etc", "../../../..", "main"} {
			e := newEnv(t)
			f, err := e.prepare(t, Options{Image: writeLayout(t, indexOf(makeImage(t, mainConfig, baseLayer(t, link(name, target)))))})
			if slices.Contains([]string{"proc", "sys", "dev", "tmp"}, name) {
				if err != nil {
					t.Errorf("%s -> %s: %v", name, target, err)
					continue
				}
				for _, l := range f.Links {
					if l.Path == "/"+name {
						t.Errorf("%s -> %s became a link of the sandbox", name, target)
					}
				}
			} else if slices.Contains([]string{"var/task", "var/runtime", "opt"}, name) {
				if err != nil {
					t.Errorf("%s -> %s: %v", name, target, err)
					continue
				}
				at := func(path string) bool { return path == "/"+name || strings.HasPrefix(path, "/"+name+"/") }
				if !slices.Contains(f.Links, rootfs.Link{Path: "/" + name, Target: target}) || slices.ContainsFunc(f.Dirs, at) ||
					slices.ContainsFunc(f.Mounts, func(m rootfs.Mount) bool { return at(m.Target) }) {
					t.Errorf("%s -> %s: %+v", name, target, f.Tree)
				}
			} else if !errors.Is(err, invalid.ErrBase) {
				t.Errorf("%s -> %s: got %v", name, target, err)
			}
		}
	}
}

// Code that the sandbox user cannot read is warned of, wherever an image has it: in the working
// directory, in folders that no system has, and among the program's arguments.
func TestUnreadableCode(t *testing.T) {
	e := newEnv(t)
	cfg := mainConfig
	cfg.WorkingDir, cfg.Cmd = "/usr/src/app", []string{"main.py", "/usr/lib/tool.py", "/usr/src/app/ok.py", "--flag"}
	img := makeImage(t, cfg, baseLayer(t, fileMode("usr/src/app/main.py", 0o600, "1"), file("usr/src/app/ok.py", "1"), fileMode("usr/lib/tool.py", 0o640, "1"),
		fileMode("usr/lib/other.py", 0o600, "1"), fileMode("home/me/secret", 0o400, "1"), fileMode("etc/shadow", 0o600, "1")))
	f, err := e.prepare(t, Options{Image: writeLayout(t, indexOf(img))})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"/usr/lib/tool.py", "/home/me/secret", "/usr/src/app/main.py"} {
		if len(f.Warnings) != 3 || !strings.Contains(f.Warnings[i], `"`+want+`" cannot be read by the sandbox user`) {
			t.Fatalf("warnings are %q, want one for %s", f.Warnings, want)
		}
	}
}

func TestLayersAreRefused(t *testing.T) {
	_, err := newEnv(t).prepare(t, Options{Image: writeLayout(t, indexOf(makeImage(t, mainConfig, baseLayer(t)))), Layers: []string{"layer.zip"}})
	if !errors.Is(err, invalid.ErrImage) {
		t.Errorf("got %v", err)
	}
}

// TestNoPolyglot: a file that is a layer and a zip at once does not become one entry
// of the store: its two forms are kept apart.
func TestNoPolyglot(t *testing.T) {
	e := newEnv(t)
	layer := baseLayer(t)
	if _, err := e.prepare(t, Options{Image: writeLayout(t, indexOf(makeImage(t, mainConfig, layer)))}); err != nil {
		t.Fatal(err)
	}
	id, _, err := v1.SHA256(strings.NewReader(string(layer)))
	must(t, err)
	if got := filepath.Base(filepath.Dir(e.trees(t)[0])); got == id.Hex {
		t.Errorf("the tree has the digest of its only layer: %s", got)
	}
}

// TestLimitsHoldForKeptTrees: an image that was unpacked under a wider limit.
func TestLimitsHoldForKeptTrees(t *testing.T) {
	e := newEnv(t)
	given := writeLayout(t, indexOf(makeImage(t, mainConfig, baseLayer(t))))
	f, err := e.prepare(t, Options{Image: given})
	if err != nil {
		t.Fatal(err)
	}
	e.wantInUse(t, 2) // the tree and its layer
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	e.wantInUse(t, 0)
	if _, err := e.prepare(t, Options{Image: given, Limits: Limits{Bytes: 100}}); !errors.Is(err, invalid.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

// TestOrigin: the store knows an image by its reference, and a file by its name.
func TestOrigin(t *testing.T) {
	e := newEnv(t)
	layout := writeLayout(t, indexOf(makeImage(t, mainConfig, baseLayer(t))))
	if _, err := e.prepare(t, Options{Image: layout}); err != nil {
		t.Fatal(err)
	}
	r, err := e.store.Collect(t.Context(), store.Retention{})
	if err != nil || len(r.InUse) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, kind := range []store.Kind{store.KindImage, store.KindLayer} {
		want := store.Origin{Kind: kind, From: filepath.Base(layout)}
		if !slices.ContainsFunc(r.InUse, func(it store.Item) bool { return it.Origin == want }) {
			t.Errorf("%+v; want %v", r, want)
		}
	}
}

// TestCancelled: a cancelled unpacking leaves nothing, not even in the middle of a
// file that costs no input.
func TestCancelled(t *testing.T) {
	e := newEnv(t)
	img := makeImage(t, mainConfig, baseLayer(t), sparseFile(5<<30))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := 0
	_, err := Prepare(ctx, Options{Image: writeLayout(t, indexOf(img)), Store: e.store, Scratch: e.scratch, Progress: func(done, total int64) {
		if calls++; done == total {
			cancel() // all input is there, the giant is still to be written
		}
	}})
	if !errors.Is(err, context.Canceled) || calls == 0 {
		t.Errorf("got %v after %d calls", err, calls)
	}
	if len(e.trees(t)) > 0 || len(listing(t, filepath.Join(e.state, "staging"))) > 0 {
		t.Error("something is left")
	}
}

// TestConcurrently: several daemons make the same tree at once; all get it.
func TestConcurrently(t *testing.T) {
	e := newEnv(t)
	given := writeLayout(t, indexOf(makeImage(t, mainConfig, baseLayer(t), tarOf(t, file("big", strings.Repeat("x", 1<<20))))))
	results := make(chan error)
	const daemons = 4
	for range daemons {
		go func() {
			store, err := store.Open(e.state)
			if err == nil {
				_, err = Prepare(t.Context(), Options{Image: given, Store: store, Scratch: e.scratch})
			}
			results <- err
		}()
	}
	for range daemons {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if trees := e.trees(t); len(trees) != 1 {
		t.Errorf("trees %q", trees)
	}
}
