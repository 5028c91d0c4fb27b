package rootfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

const shell = "#!/bin/sh\n"

// testBase is a small base tree with a shell and all interpreters.
func testBase(t testing.TB, more ...ziptest.File) string {
	return makeTree(t, append([]ziptest.File{
		{Name: "bin/sh", Mode: 0o755, Body: program(machines[runtime.GOARCH], elf.ELFCLASS64)},
		{Name: "usr/bin/python3.11", Mode: 0o755, Body: "x"}, {Name: "usr/bin/python3", Mode: link, Body: "python3.11"},
		{Name: "usr/bin/node", Mode: 0o755, Body: "junk v18 /download/release/v20.20.2/node-v20.20.2.tar.gz"},
		{Name: "usr/bin/ruby3.1", Mode: 0o755, Body: "x"}, {Name: "usr/bin/ruby", Mode: link, Body: "ruby3.1"},
		{Name: "usr/lib/jvm/java-17/bin/java", Mode: 0o755, Body: "x"}, {Name: "usr/bin/java", Mode: link, Body: "../lib/jvm/java-17/bin/java"},
		{Name: "usr/lib/jvm/java-17/release", Body: "JAVA_RUNTIME_VERSION=\"21\"\nJAVA_VERSION=\"17.0.15\"\n"},
	}, more...)...)
}

// program is the beginning of an ELF program.
func program(m elf.Machine, class elf.Class) string {
	head := make([]byte, 64)
	copy(head, elf.ELFMAG)
	head[elf.EI_CLASS], head[elf.EI_DATA] = byte(class), byte(elf.ELFDATA2LSB)
	binary.LittleEndian.PutUint16(head[18:], uint16(m))
	return string(head)
}

// linked is a program that names a loader.
func linked(loader string) string {
	head := []byte(program(machines[runtime.GOARCH], elf.ELFCLASS64))
	binary.LittleEndian.PutUint64(head[32:], 64)
	binary.LittleEndian.PutUint16(head[54:], 56)
	binary.LittleEndian.PutUint16(head[56:], 2)
	headers := make([]byte, 2*56)
	binary.LittleEndian.PutUint32(headers, uint32(elf.PT_PHDR))
	binary.LittleEndian.PutUint32(headers[56:], uint32(elf.PT_INTERP))
	binary.LittleEndian.PutUint64(headers[56+8:], uint64(len(head)+len(headers)))
	binary.LittleEndian.PutUint64(headers[56+32:], uint64(len(loader)+1))
	return string(head) + string(headers) + loader + "\x00"
}

// Whatever its headers say, a program without a loader that can be read is left to the kernel.
func TestLoader(t *testing.T) {
	whole := linked("/lib/ld.so")
	change := func(at int, to uint64) string {
		b := []byte(whole)
		binary.LittleEndian.PutUint64(b[at:], to)
		return string(b)
	}
	code := makeTree(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: whole})
	if _, err := prepareDir(t, FunctionOptions{Code: code, Base: testBase(t, ziptest.File{Name: "lib/ld.so"})}); err != nil {
		t.Errorf("loader that is there: %v", err)
	}
	if got := findLoader(strings.NewReader(whole), []byte(whole)); got != "/lib/ld.so" {
		t.Errorf("loader %q", got)
	}
	for name, body := range map[string]string{
		"none":               program(machines[runtime.GOARCH], elf.ELFCLASS64),
		"headers far away":   change(32, math.MaxUint64),
		"headers at the end": change(32, uint64(len(whole))),
		"name far away":      change(64+56+8, math.MaxUint64),
		"long name":          change(64+56+32, math.MaxUint64),
		"name of no length":  change(64+56+32, 0),
		"cut":                whole[:len(whole)-3],
	} {
		if got := findLoader(strings.NewReader(body), []byte(body)); got != "" {
			t.Errorf("%s: loader %q", name, got)
		}
	}
}

func prepareDir(t testing.TB, opts FunctionOptions) (*Function, error) {
	if opts.Base == "" {
		opts.Base = testBase(t)
	}
	if opts.Store == nil {
		var err error
		if opts.Store, err = store.Open(t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	opts.Scratch = t.TempDir()
	f, err := Prepare(t.Context(), opts)
	if err != nil {
		ziptest.WantTree(t, opts.Scratch)
		wantInUse(t, opts.Store, 0)
	}
	return f, err
}

// wantInUse wants that so many entries of the store are in use.
func wantInUse(t testing.TB, s *store.Store, want int) {
	t.Helper()
	r, err := s.Collect(t.Context(), store.Retention{Age: store.NoAge, Bytes: store.NoBytes})
	if err != nil || len(r.InUse) != want {
		t.Errorf("in use are %+v, %v; want %d", r.InUse, err, want)
	}
}

// A function holds its zips until it is closed.
func TestFunctionHoldsItsPackages(t *testing.T) {
	zip := func(files ...ziptest.File) string { return ziptest.Write(t, t.TempDir(), ziptest.Make(t, files...)) }
	packages, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f, err := prepareDir(t, FunctionOptions{Store: packages, Code: zip(ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell}), Layers: []string{zip(ziptest.File{Name: "x"}), makeTree(t)}})
	if err != nil {
		t.Fatal(err)
	}
	wantInUse(t, packages, 2)
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		wantInUse(t, packages, 0)
	}
	if err := (*Function)(nil).Close(); err != nil {
		t.Error(err)
	}
}

// ENV-29: a layer that is given twice, under whatever name, counts where it is given last; one
// inside another is refused. Overlayfs would refuse both at the first request.
func TestLayersThatOverlap(t *testing.T) {
	code := makeTree(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell})
	outer := makeTree(t, ziptest.File{Name: "inner/x"}, ziptest.File{Name: "innermost/y"})
	inner, other := filepath.Join(outer, "inner"), makeTree(t, ziptest.File{Name: "x"})
	alias := filepath.Join(t.TempDir(), "alias")
	if err := os.Symlink(other, alias); err != nil {
		t.Fatal(err)
	}
	content := ziptest.Make(t, ziptest.File{Name: "x"})
	zip, copied := ziptest.Write(t, t.TempDir(), content), ziptest.Write(t, t.TempDir(), content)
	base := testBase(t, ziptest.File{Name: "opt/x"})
	for _, tt := range []struct {
		name   string
		layers []string
		want   int    // layers that are shown, that of the base included
		says   string // in a warning, or in the error if want is 0
	}{
		{"different ones", []string{other, zip}, 3, ""},
		{"a folder twice", []string{other, other}, 2, "the layer " + other + " is given twice"},
		{"a link to it", []string{other, zip, alias}, 3, "the layers " + other + " and " + alias + " are the same"},
		{"one content", []string{zip, other, copied}, 3, "the layers " + zip + " and " + copied + " are the same"},
		{"a copy of a folder", []string{other, makeTree(t, ziptest.File{Name: "x"})}, 3, ""},
		{"/opt of the base", []string{filepath.Join(base, "opt")}, 1, "the layers /opt of the base and "},
		{"a folder, and one in it", []string{outer, inner}, 0, inner + ": is a layer inside the layer " + outer},
		{"the other way round", []string{inner, other, outer}, 0, inner + ": is a layer inside the layer " + outer},
		{"the base", []string{base}, 0, "/opt of the base: is a layer inside the layer " + base},
		{"two folders of one", []string{inner, filepath.Join(outer, "innermost")}, 3, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := prepareDir(t, FunctionOptions{Code: code, Base: base, Layers: tt.layers})
			if err != nil {
				if tt.want > 0 || !errors.Is(err, invalid.ErrPackage) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%v; want %d layers", err, tt.want)
				}
				return
			}
			defer f.Close()
			var opt []string
			for _, m := range f.Mounts {
				if m.Target == optDir {
					opt = m.Sources
				}
			}
			if len(opt) != tt.want {
				t.Errorf("/opt is %q, want %d of them", opt, tt.want)
			}
			if said := strings.Join(f.Warnings, "\n"); tt.says == "" && strings.Contains(said, "layer") || !strings.Contains(said, tt.says) {
				t.Errorf("warnings %q, want %q", said, tt.says)
			}
		})
	}
}

// TestBootstrapLookup (ENV-23): code, then layers with the topmost first, then the
// base; links are followed inside.
func TestBootstrapLookup(t *testing.T) {
	boot := func(body string) ziptest.File {
		return ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell + body}
	}
	with, without := makeTree(t, boot("")), makeTree(t, ziptest.File{Name: "x"})
	tests := []struct {
		name, code string
		layers     []string
		base       []ziptest.File
		want       string
	}{
		{"code", with, []string{with}, nil, "/var/task/bootstrap"},
		{"layer", without, []string{with, without}, nil, "/opt/bootstrap"},
		{"opt of the base", without, []string{without}, []ziptest.File{{Name: "opt/bootstrap", Mode: 0o755, Body: shell}}, "/opt/bootstrap"},
		{"base", without, nil, []ziptest.File{{Name: "var/runtime/bootstrap", Mode: 0o755, Body: shell}}, "/var/runtime/bootstrap"},
		{"link to a layer", makeTree(t, ziptest.File{Name: "bootstrap", Mode: link, Body: "/opt/bootstrap"}), []string{with}, nil, "/var/task/bootstrap"},
		{"dangling link", makeTree(t, ziptest.File{Name: "bootstrap", Mode: link, Body: "/root/x"}), []string{with}, nil, "/opt/bootstrap"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := prepareDir(t, FunctionOptions{Code: tt.code, Layers: tt.layers, Base: testBase(t, tt.base...)})
			if err != nil {
				t.Fatal(err)
			}
			checkTree(t, &f.Tree)
			if f.Bootstrap != tt.want {
				t.Errorf("bootstrap %s, want %s", f.Bootstrap, tt.want)
			}
		})
	}
}

func TestPrepareZip(t *testing.T) {
	dir := t.TempDir()
	code := ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell}, ziptest.File{Name: "key", Mode: 0o600}))
	layer := filepath.Join(dir, "layer.zip")
	if err := os.WriteFile(layer, ziptest.Make(t, ziptest.File{Name: "extensions/b", Mode: 0o755, Body: shell}, ziptest.File{Name: "extensions/a", Mode: 0o755, Body: "#!/bin/sh -e\r\n"}, ziptest.File{Name: "extensions/d/x"}), 0o600); err != nil {
		t.Fatal(err)
	}
	low := makeTree(t, ziptest.File{Name: "extensions/c"}, ziptest.File{Name: "extensions/l", Mode: link, Body: "/etc/passwd"})
	f, err := prepareDir(t, FunctionOptions{Code: code, Layers: []string{low, layer}})
	if err != nil {
		t.Fatal(err)
	}
	checkTree(t, &f.Tree)
	if want := []string{"a", "b", "c", "l"}; !slices.Equal(f.Extensions, want) || f.ExtensionsDisabled { // EX-01
		t.Errorf("extensions %q (disabled %v), want %q", f.Extensions, f.ExtensionsDisabled, want)
	}
	if opt := mountOf(&f.Tree, "/opt"); len(opt) != 2 || opt[0] != low {
		t.Errorf("/opt is %q, want the layers in order", opt)
	}
	if len(f.Digest) != 64 {
		t.Errorf("digest %q", f.Digest)
	}
	for i, want := range []string{"/var/task/key", "extension a cannot be started: " + layer + `: "/opt/extensions/a": has Windows line ends`,
		"extension c cannot be started: " + low + `: "/opt/extensions/c": is not executable`, "extension l cannot be started"} {
		if len(f.Warnings) != 4 || !strings.Contains(f.Warnings[i], want) {
			t.Errorf("warnings %q, want %q", f.Warnings, want)
		}
	}
}

func TestExtensionsDisabled(t *testing.T) { // EX-05
	layer := makeTree(t, ziptest.File{Name: "disable-extensions-jwigqn8j"}, ziptest.File{Name: "extensions/a"})
	f, err := prepareDir(t, FunctionOptions{Code: makeTree(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell}), Layers: []string{layer}})
	if err != nil || !f.ExtensionsDisabled {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestPrepareErrors(t *testing.T) {
	good := makeTree(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell})
	code := func(f ...ziptest.File) string { return makeTree(t, f...) }
	boot := func(mode fs.FileMode, body string) string {
		return code(ziptest.File{Name: "bootstrap", Mode: mode, Body: body})
	}
	locked := boot(0o755, shell)
	if err := os.Chmod(locked, 0o700); err != nil {
		t.Fatal(err)
	}
	other := elf.EM_AARCH64
	if runtime.GOARCH == "arm64" {
		other = elf.EM_X86_64
	}
	zipOf := func(f ...ziptest.File) string { return ziptest.Write(t, t.TempDir(), ziptest.Make(t, f...)) }
	tooBig := zipOf(ziptest.File{Name: "bootstrap", Mode: 0o755, Body: strings.Repeat("x", 100)})
	tests := []struct {
		name string
		opts FunctionOptions
		kind error
		says string
	}{
		{"no code", FunctionOptions{Code: filepath.Join(good, "none")}, invalid.ErrNotFound, "none"},
		{"code is no zip", FunctionOptions{Code: filepath.Join(good, "bootstrap")}, invalid.ErrPackage, "zip -r"},
		{"no bootstrap", FunctionOptions{Code: code(ziptest.File{Name: "main.py"})}, invalid.ErrNoBootstrap, "/var/task/bootstrap"},
		{"bootstrap not executable", FunctionOptions{Code: boot(0o644, shell)}, invalid.ErrNotExecutable, "chmod 755"},
		{"executable for its owner only", FunctionOptions{Code: boot(0o744, shell)}, invalid.ErrNotExecutable, "chmod 755"},
		{"script that cannot be read", FunctionOptions{Code: boot(0o751, shell)}, invalid.ErrNotExecutable, "may not read"},
		{"folder that cannot be entered", FunctionOptions{Code: locked}, invalid.ErrNotExecutable, "/var/task"},
		{"bootstrap is a folder", FunctionOptions{Code: code(ziptest.File{Name: "bootstrap/x"})}, invalid.ErrNotExecutable, "is no file"},
		{"bootstrap is a fifo", FunctionOptions{Code: code(ziptest.File{Name: "bootstrap", Mode: fs.ModeNamedPipe})}, invalid.ErrNotExecutable, "is no file"},
		{"bootstrap is text", FunctionOptions{Code: boot(0o755, "echo hello\n")}, invalid.ErrNotExecutable, "#!/bin/sh"},
		{"Windows line ends", FunctionOptions{Code: boot(0o755, "#!/bin/sh\r\necho\r\n")}, invalid.ErrNotExecutable, "dos2unix"},
		{"Windows line ends after env", FunctionOptions{Code: boot(0o755, "#!/usr/bin/env python3\r\n")}, invalid.ErrNotExecutable, "dos2unix"},
		{"Windows line ends after an option", FunctionOptions{Code: boot(0o755, "#!/bin/sh -e\r\n")}, invalid.ErrNotExecutable, "dos2unix"},
		{"line ends of old Macs", FunctionOptions{Code: boot(0o755, "#!/bin/sh\recho\r")}, invalid.ErrNotExecutable, "dos2unix"},
		{"byte order mark", FunctionOptions{Code: boot(0o755, "\xef\xbb\xbf#!/bin/sh\n")}, invalid.ErrNotExecutable, "byte order mark"},
		{"loader that the base lacks", FunctionOptions{Code: boot(0o755, linked("/lib/ld-musl-x86_64.so.1"))}, invalid.ErrNotExecutable, `is linked to be loaded by "/lib/ld-musl-x86_64.so.1", which the base does not have`},
		{"empty", FunctionOptions{Code: boot(0o755, "")}, invalid.ErrNotExecutable, "is empty"},
		{"macOS, 32 bits", FunctionOptions{Code: boot(0o755, "\xce\xfa\xed\xfe")}, invalid.ErrNotExecutable, "macOS"},
		{"macOS, big end first", FunctionOptions{Code: boot(0o755, "\xfe\xed\xfa\xcf")}, invalid.ErrNotExecutable, "macOS"},
		{"macOS, universal", FunctionOptions{Code: boot(0o755, "\xca\xfe\xba\xbf")}, invalid.ErrNotExecutable, "macOS"},
		{"no interpreter", FunctionOptions{Code: boot(0o755, "#!\n")}, invalid.ErrNotExecutable, "names no interpreter"},
		{"interpreter that is not executable", FunctionOptions{Code: code(ziptest.File{Name: "bootstrap", Mode: 0o755, Body: "#!/var/task/run\n"}, ziptest.File{Name: "run", Body: shell})},
			invalid.ErrNotExecutable, `wants the interpreter "/var/task/run", which the sandbox user cannot execute (mode 0644)`},
		{"UTF-32", FunctionOptions{Code: boot(0o755, "\xff\xfe\x00\x00#\x00")}, invalid.ErrNotExecutable, "UTF-32"},
		{"UTF-16 as of Windows", FunctionOptions{Code: boot(0o755, "\xff\xfe#\x00!\x00/\x00")}, invalid.ErrNotExecutable, "UTF-16"},
		{"UTF-16, big end first", FunctionOptions{Code: boot(0o755, "\xfe\xff\x00#\x00!")}, invalid.ErrNotExecutable, "UTF-16"},
		{"UTF-16 without mark", FunctionOptions{Code: boot(0o755, "#\x00!\x00/\x00")}, invalid.ErrNotExecutable, "UTF-16"},
		{"program for Windows", FunctionOptions{Code: boot(0o755, "MZ\x90\x00")}, invalid.ErrNotExecutable, "GOOS=linux"},
		{"program for macOS", FunctionOptions{Code: boot(0o755, "\xcf\xfa\xed\xfe\x07")}, invalid.ErrNotExecutable, "macOS"},
		{"interpreter is not there", FunctionOptions{Code: boot(0o755, "#! /usr/bin/zsh -e\n")}, invalid.ErrNotExecutable, "/usr/bin/zsh"},
		{"interpreter is not named", FunctionOptions{Code: boot(0o755, "#!\n")}, invalid.ErrNotExecutable, "first line"},
		{"other architecture", FunctionOptions{Code: boot(0o755, program(other, elf.ELFCLASS64))}, invalid.ErrArchitecture, archName(other)},
		{"32 bit", FunctionOptions{Code: boot(0o755, program(machines[runtime.GOARCH], elf.ELFCLASS32))}, invalid.ErrArchitecture, "32-bit"},
		{"stump of a program", FunctionOptions{Code: boot(0o755, elf.ELFMAG)}, invalid.ErrArchitecture, "beginning"},
		{"unknown runtime", FunctionOptions{Code: good, Runtime: "cobol1.x", Handler: "h"}, invalid.ErrRuntime, "nodejs20.x"},
		{"no handler", FunctionOptions{Code: good, Runtime: "nodejs20.x"}, invalid.ErrHandler, "nodejs20.x"},
		{"no interpreter", FunctionOptions{Code: good, Runtime: "python3.12", Handler: "h"}, invalid.ErrRuntime, "version 3.11"},
		{"no shell", FunctionOptions{Code: good, Runtime: "python3.12", Handler: "h", Base: t.TempDir()}, invalid.ErrRuntime, "/bin/sh"},
		{"no Java client", FunctionOptions{Code: good, Runtime: "java17", Handler: "h"}, invalid.ErrClient, "mvn dependency:copy-dependencies"},
		{"no Python client", FunctionOptions{Code: good, Runtime: "python3.11", Handler: "h"}, invalid.ErrClient, "pip install awslambdaric -t ."},
		{"no Node client", FunctionOptions{Code: good, Runtime: "nodejs20.x", Handler: "h"}, invalid.ErrClient, "npm install aws-lambda-ric@3"},
		{"no Ruby client", FunctionOptions{Code: good, Runtime: "ruby3.1", Handler: "h"}, invalid.ErrClient, "sudo sandboxd layer ruby3.1"},
		{"no client, and the layer", FunctionOptions{Code: good, Runtime: "nodejs20.x", Handler: "h"}, invalid.ErrClient, "add --layer nodejs20.x-layer.zip"},
		{"Ruby of another version", FunctionOptions{Code: good, Runtime: "ruby3.3", Handler: "h"}, invalid.ErrRuntime, "version 3.1"},
		{"six layers", FunctionOptions{Code: good, Layers: slices.Repeat([]string{good}, 6)}, invalid.ErrTooLarge, "ENV-36"},
		{"missing layer", FunctionOptions{Code: good, Layers: []string{"/nonexistent/layer"}}, invalid.ErrNotFound, "/nonexistent/layer"},
		{"code and layer together", FunctionOptions{Code: tooBig, Layers: []string{tooBig}, Limits: extract.Limits{UnzippedBytes: 150}}, invalid.ErrTooLarge, "50 bytes"},
		{"zip without bootstrap", FunctionOptions{Code: zipOf(ziptest.File{Name: "main.py"}), Layers: []string{tooBig}}, invalid.ErrNotExecutable, "#!/bin/sh"},
		{"zip and missing layer", FunctionOptions{Code: tooBig, Layers: []string{"/nonexistent/layer"}}, invalid.ErrNotFound, "/nonexistent/layer"},
		{"zip and no base", FunctionOptions{Code: tooBig, Base: "/nonexistent/base"}, invalid.ErrNotFound, "/nonexistent/base"},
		{"no base", FunctionOptions{Code: good, Base: "/nonexistent/base"}, invalid.ErrNotFound, "/nonexistent/base"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := prepareDir(t, tt.opts)
			if !errors.As(err, new(*invalid.Error)) || !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want kind %q that says %q", err, tt.kind, tt.says)
			}
		})
	}
}

// A wrapper that cannot be started is warned of: it fails the initialization (ENV-27).
func TestWrapperWarning(t *testing.T) {
	python := ziptest.File{Name: "awslambdaric/__main__.py"}
	layer := makeTree(t, ziptest.File{Name: "good", Mode: 0o755, Body: shell}, ziptest.File{Name: "crlf", Mode: 0o755, Body: "#!/usr/bin/env bash\r\n"})
	for wrapper, want := range map[string]string{
		"": "", "/opt/good": "", "found-by-path": "",
		"/opt/crlf": "Windows line ends", "/opt/none": `"/opt/none" does not exist in the sandbox`, "./awslambdaric/__main__.py": "not executable",
	} {
		f, err := prepareDir(t, FunctionOptions{Code: makeTree(t, python), Layers: []string{layer}, Runtime: "python3.11", Handler: "a.b", Wrapper: wrapper})
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(f.Warnings, "\n")
		if !strings.Contains(got, want) || (got == "") != (want == "") || want != "" && !strings.HasPrefix(got, "the program of AWS_LAMBDA_EXEC_WRAPPER cannot be started: ") {
			t.Errorf("%q: warnings %q, want %q", wrapper, got, want)
		}
	}
	code := makeTree(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell})
	if f, err := prepareDir(t, FunctionOptions{Code: code, Wrapper: "/opt/none"}); err != nil || len(f.Warnings) > 0 { // provided.* do not heed it (ENV-26)
		t.Errorf("%+v, %v", f, err)
	}
}

func TestBootstrapArchitecture(t *testing.T) {
	f, err := prepareDir(t, FunctionOptions{Code: makeTree(t, ziptest.File{Name: "bootstrap", Mode: 0o711, Body: program(machines[runtime.GOARCH], elf.ELFCLASS64)})})
	if err != nil || f.Bootstrap != "/var/task/bootstrap" {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestLanguageBootstrap runs the made script with a wrapper (ENV-26) that shows what
// would be started: RIC-02, RIC-03, RIC-04, RIC-05, RIC-07.
func TestLanguageBootstrap(t *testing.T) {
	show := filepath.Join(makeTree(t, ziptest.File{Name: "show", Mode: 0o755, Body: shell + `echo "$@"; echo "NODE_PATH=$NODE_PATH PYTHONPATH=$PYTHONPATH GEM_PATH=$GEM_PATH RUBYLIB=$RUBYLIB"`}), "show")
	node3 := makeTree(t, ziptest.File{Name: "node_modules/aws-lambda-ric/bin/index.mjs"})
	node4 := makeTree(t, ziptest.File{Name: "nodejs/node_modules/aws-lambda-ric/index.mjs"})
	python := makeTree(t, ziptest.File{Name: "awslambdaric/__main__.py"})
	pythonLayer := makeTree(t, ziptest.File{Name: "python/lib/python3.11/site-packages/awslambdaric/__main__.py"})
	node22 := makeTree(t, ziptest.File{Name: "bin/node", Mode: 0o755, Body: "/download/release/v22.1.0/"})
	java := makeTree(t, ziptest.File{Name: "lib/aws-lambda-java-core-1.jar"}, ziptest.File{Name: "lib/aws-lambda-java-runtime-interface-client-2.10.1.jar"})
	ruby := makeTree(t, ziptest.File{Name: "ruby/gems/3.1.0/specifications/aws_lambda_ric-3.1.3.gemspec"})
	rubyBase := testBase(t, ziptest.File{Name: "usr/local/bin/ruby", Mode: 0o755, Body: "x"}, ziptest.File{Name: "usr/local/lib/ruby/3.4.0/x"}, ziptest.File{Name: "usr/local/lib/ruby/gems/x"})
	javaUnpacked := makeTree(t, ziptest.File{Name: "com/amazonaws/services/lambda/runtime/api/client/AWSLambda.class"})
	const javaMain = "com.amazonaws.services.lambda.runtime.api.client.AWSLambda a b.c"
	empty := makeTree(t, ziptest.File{Name: "main"})
	const node = "/usr/bin/node --expose-gc --max-http-header-size 81920 --max-semi-space-size=6 --max-old-space-size=116"
	const javaTop = "/usr/bin/java -XX:MaxHeapSize=111411k -XX:+UseSerialGC -XX:+TieredCompilation -XX:TieredStopAtLevel=1 -XX:+ErrorFileToStderr"
	const crac = " --add-opens=java.base/java.io=ALL-UNNAMED -Dorg.crac.Core.Compat=com.amazonaws.services.lambda.crac -Djava.net.preferIPv4Stack=true"
	older := testBase(t, ziptest.File{Name: "usr/local/bin/node", Mode: 0o755, Body: "/download/release/v20.9.1/"})
	tests := []struct {
		name  string
		opts  FunctionOptions
		env   string
		want  string
		path  string
		warn  string
		start string // the launcher has it
	}{
		{"node 3.x client", FunctionOptions{Code: node3, Runtime: "nodejs20.x"}, "",
			node + " --no-experimental-require-module /var/runtime/index.mjs", "NODE_PATH=/opt/nodejs/node20/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:/var/runtime:/var/task ", "",
			"import('/var/task/node_modules/aws-lambda-ric/bin/index.mjs')"},
		{"node 4.x client in a layer, other version", FunctionOptions{Code: empty, Layers: []string{node4}, Runtime: "nodejs22.x"},
			"NODE_OPTIONS=--max-old-space-size=64 --max_semi_space_size=2 --max-http-header-size=9 --expose_gc",
			"/usr/bin/node --no-experimental-require-module --no-experimental-detect-module /var/runtime/index.mjs", "/opt/nodejs/node_modules:", "is version 4, which refuses",
			"import('/opt/nodejs/node_modules/aws-lambda-ric/index.mjs')"},
		{"node with features enabled again", FunctionOptions{Code: node3, Layers: []string{node22}, Runtime: "nodejs22.x"},
			"NODE_OPTIONS=--experimental-require-module --experimental-detect-module", strings.Replace(node, "/usr/bin", "/opt/bin", 1) + " /var/runtime/index.mjs", "", "", ""},
		{"node with features enabled again, in its other spelling", FunctionOptions{Code: node3, Layers: []string{node22}, Runtime: "nodejs22.x"},
			"NODE_OPTIONS=--experimental_require_module --experimental_detect_module", strings.Replace(node, "/usr/bin", "/opt/bin", 1) + " /var/runtime/index.mjs", "", "", ""},
		{"node with features disabled twice", FunctionOptions{Code: node3, Layers: []string{node22}, Runtime: "nodejs22.x"}, "NODE_OPTIONS=--no-experimental-require-module",
			strings.Replace(node, "/usr/bin", "/opt/bin", 1) + " --no-experimental-require-module --no-experimental-detect-module /var/runtime/index.mjs", "", "", ""},
		{"node that does not know the options", FunctionOptions{Code: node3, Runtime: "nodejs20.x", Base: older}, "",
			strings.Replace(node, "/usr/bin", "/usr/local/bin", 1) + " /var/runtime/index.mjs", "", "", ""},
		{"python", FunctionOptions{Code: python, Runtime: "python3.11"}, "PYTHONPATH=/mine",
			"/usr/bin/python3.11 /var/runtime/bootstrap.py", "PYTHONPATH=/mine:/var/task:/opt/python/lib/python3.11/site-packages:/opt/python:/var/runtime", "", `os.environ["_HANDLER"]`},
		{"python client in a layer", FunctionOptions{Code: empty, Layers: []string{pythonLayer}, Runtime: "python3.11"}, "",
			"/usr/bin/python3.11 /var/runtime/bootstrap.py", "PYTHONPATH=/var/task:", "", ""},
		{"ruby client in a layer", FunctionOptions{Code: empty, Layers: []string{ruby}, Runtime: "ruby3.1"}, "GEM_PATH=",
			"/usr/bin/ruby3.1 /var/runtime/index.rb", "GEM_PATH=/var/task/vendor/bundle/ruby/3.1.0:/opt/ruby/gems/3.1.0:/var/runtime/gems RUBYLIB=/var/task:/var/runtime/lib:/opt/ruby/lib", "", "AwsLambdaRIC"},
		{"ruby of a version that its folder tells", FunctionOptions{Code: makeTree(t, ziptest.File{Name: "aws_lambda_ric.rb"}), Runtime: "ruby3.4", Base: rubyBase}, "RUBYLIB=/mine",
			"/usr/local/bin/ruby /var/runtime/index.rb", "RUBYLIB=/mine", "", ""},
		{"java", FunctionOptions{Code: java, Runtime: "java17"}, "JAVA_TOOL_OPTIONS=-Dx=y",
			javaTop + crac + " -classpath /var/task/lib/* " + javaMain, "", "", ""},
		{"java with options of its own, other version", FunctionOptions{Code: javaUnpacked, Runtime: "java21"},
			"JAVA_TOOL_OPTIONS=-XX:+UseG1GC -Xmx64m -XX:TieredStopAtLevel=4 -XX:ErrorFile=/tmp/x -Dorg.crac.Core.Compat=x -Djava.net.preferIPv4Stack=false --add-opens=java.base/java.io=x",
			"/usr/bin/java -classpath /var/task " + javaMain, "", "version 17", ""},
		{"java 11", FunctionOptions{Code: javaUnpacked, Runtime: "java11"}, "",
			"/usr/bin/java -XX:MaxHeapSize=111411k -XX:+UseSerialGC -XX:ReservedCodeCacheSize=6553k" + crac + " -classpath /var/task " + javaMain, "", "version 17", ""},
		{"java 25", FunctionOptions{Code: javaUnpacked, Runtime: "java25"}, "", javaTop + crac + " -classpath /var/task " + javaMain, "", "version 17", ""},
		{"java 25 with snap-start", FunctionOptions{Code: javaUnpacked, Runtime: "java25"}, "AWS_LAMBDA_INITIALIZATION_TYPE=snap-start",
			strings.Replace(javaTop, " -XX:+TieredCompilation -XX:TieredStopAtLevel=1", "", 1) + crac + " -classpath /var/task " + javaMain, "", "version 17", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.Handler = "a b.c"
			f, err := prepareDir(t, tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			checkTree(t, &f.Tree)
			if f.Bootstrap != "/var/runtime/bootstrap" {
				t.Fatalf("bootstrap %s", f.Bootstrap)
			}
			if got := strings.Join(f.Warnings, "\n"); !strings.Contains(got, tt.warn) || tt.warn == "" && got != "" {
				t.Errorf("warnings %q, want %q", got, tt.warn)
			}
			sources := mountOf(&f.Tree, "/var/runtime")
			cmd := exec.Command(filepath.Join(sources[len(sources)-1], "bootstrap"))
			cmd.Env = []string{"_HANDLER=a b.c", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128", "AWS_LAMBDA_EXEC_WRAPPER=" + show, tt.env}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			got, paths, _ := strings.Cut(string(out), "\n")
			if got != tt.want || !strings.Contains(paths, tt.path) {
				t.Errorf("started\n%q with %q, want\n%q with %q", got, paths, tt.want, tt.path)
			}
			if last := got[strings.LastIndexByte(got, ' ')+1:]; tt.start != "" {
				launcher, err := os.ReadFile(filepath.Join(sources[len(sources)-1], filepath.Base(last)))
				if err != nil || !strings.Contains(string(launcher), tt.start) {
					t.Errorf("%s is %q, %v; want %q in it", last, launcher, err, tt.start)
				}
			}
		})
	}
}

// TestLanguageImage: a base with a bootstrap of its own for the language keeps it.
func TestLanguageImage(t *testing.T) {
	base := testBase(t, ziptest.File{Name: "var/runtime/bootstrap", Mode: 0o755, Body: shell})
	f, err := prepareDir(t, FunctionOptions{Code: makeTree(t, ziptest.File{Name: "x"}), Runtime: "nodejs22.x", Handler: "h", Base: base})
	if err != nil {
		t.Fatal(err)
	}
	if got := mountOf(&f.Tree, "/var/runtime"); len(got) != 1 || got[0] != filepath.Join(base, "var/runtime") {
		t.Errorf("/var/runtime is %q", got)
	}
}

func TestScanWarnings(t *testing.T) {
	files := []ziptest.File{{Name: "bootstrap", Mode: 0o755, Body: shell}, {Name: "big", Body: strings.Repeat("x", 1000)}}
	for i := range 15 {
		files = append(files, ziptest.File{Name: fmt.Sprintf("private%02d", i), Mode: 0o600})
	}
	f, err := prepareDir(t, FunctionOptions{Code: makeTree(t, files...), Limits: extract.Limits{UnzippedBytes: 500}})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(f.Warnings); n != maxScanWarnings+2 {
		t.Fatalf("%d warnings: %q", n, f.Warnings)
	}
	if w := f.Warnings[0]; !strings.Contains(w, "/var/task/private00") || !strings.Contains(w, "chmod o+r") {
		t.Errorf("first warning %q", w)
	}
	if w := f.Warnings[maxScanWarnings]; !strings.Contains(w, "5 more") {
		t.Errorf("warning %q, want 5 more", w)
	}
	if w := f.Warnings[maxScanWarnings+1]; !strings.Contains(w, "ENV-36") {
		t.Errorf("warning %q, want the limit", w)
	}
}

// Links stay links, wherever they lead, in folders and in zips. A warning names those that
// lead out of the package to nothing that the sandbox has, such as files in the host's /tmp.
func TestLinksOut(t *testing.T) {
	inTmp, err := os.MkdirTemp("/tmp", "shared-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(inTmp)
	files := []ziptest.File{
		{Name: "bootstrap", Mode: 0o755, Body: shell},
		{Name: "up", Mode: link, Body: "../../opt/modules"}, {Name: "d/up", Mode: link, Body: "../../../opt/modules/x"},
		{Name: "absolute", Mode: link, Body: "/opt/modules"}, {Name: "self", Mode: link, Body: "/var/task/bootstrap"},
		{Name: "tmp", Mode: link, Body: "/tmp/cache"}, {Name: "inside", Mode: link, Body: "missing"}, {Name: "loop", Mode: link, Body: "loop"},
		{Name: "dead0", Mode: link, Body: inTmp},
		{Name: "dead1", Mode: link, Body: "../shared"}, {Name: "dead2", Mode: link, Body: "/home/me/x"}, {Name: "dead3", Mode: link, Body: "../../../../../../etc/shadow"},
	}
	layer := []ziptest.File{{Name: "modules/x"}, {Name: "dead4", Mode: link, Body: "../elsewhere"}}
	zipOf := func(f ...ziptest.File) string { return ziptest.Write(t, t.TempDir(), ziptest.Make(t, f...)) }
	for name, code := range map[string][2]string{"folder": {makeTree(t, files...), makeTree(t, layer...)}, "zip": {zipOf(files...), zipOf(layer...)}} {
		f, err := prepareDir(t, FunctionOptions{Code: code[0], Layers: code[1:]})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, file := range files[1:] {
			if target, err := os.Readlink(filepath.Join(mountOf(&f.Tree, "/var/task")[0], file.Name)); target != file.Body || err != nil {
				t.Errorf("%s: %s is a link to %q, %v", name, file.Name, target, err)
			}
		}
		want := []string{"/var/task/dead0", "/var/task/dead1", "/var/task/dead2", "/var/task/dead3", "/opt/dead4"}
		if len(f.Warnings) != len(want) {
			t.Fatalf("%s: warnings %q", name, f.Warnings)
		}
		for i, w := range want {
			if !strings.Contains(f.Warnings[i], w) || !strings.Contains(f.Warnings[i], "leads out of its folder") {
				t.Errorf("%s: warning %q, want one for %s", name, f.Warnings[i], w)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestUmask: whatever the daemon's umask, the sandbox user can read what is made.
func TestUmask(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	code := ziptest.Write(t, t.TempDir(), ziptest.Make(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell}, ziptest.File{Name: "a/b/awslambdaric"},
		ziptest.File{Name: "awslambdaric/__main__.py"}))
	f, err := prepareDir(t, FunctionOptions{Code: code, Base: HostBase})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range f.Mounts {
		if m.Target == "/usr" || path.Base(m.Target) == "dash" {
			continue
		}
		s := scan{ctx: t.Context(), pkg: pkg{given: m.Target, dir: m.Sources[0], inside: m.Target}}
		if err := s.run(); err != nil || s.unreadable > 0 || s.entries < 3 {
			t.Errorf("%s: %d entries, %v, %v", m.Target, s.entries, s.warnings, err)
		}
	}
}

func TestScanVersion(t *testing.T) {
	mark := []byte("/release/v")
	for _, at := range []int{0, 1<<20 - 11, 1<<20 - 5, 1 << 20, 1<<20 + 10, 3<<20 - 1} {
		data := append(bytes.Repeat([]byte{'v'}, at), "/release/v22.1.0/x"...)
		if got, err := scanVersion(bytes.NewReader(data), mark); got != "22.1" || err != nil {
			t.Errorf("mark at %d: %q, %v", at, got, err)
		}
	}
	for _, data := range []string{"", "/release/v", "/release/vX"} {
		if got, err := scanVersion(strings.NewReader(data), mark); got != "" || err != nil {
			t.Errorf("%q: %q, %v", data, got, err)
		}
	}
}
