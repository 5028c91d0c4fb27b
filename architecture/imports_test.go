package architecture

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/sandboxd/sandboxd"

// allowed says which of our packages a package may import: the arrows of
// docs/design.md. A package that is not listed fails the test, so that whoever adds
// one decides where it stands.
var allowed = map[string][]string{
	"architecture":            {},
	"cmd/sandbox-init":        {"isolation/wire"},
	"cmd/sandbox-stage":       {"isolation/runc/reexec"},
	"cmd/sandboxd":            {"host/subid", "internal/runfolder", "rootfs/store", "rootfs/extract", "rootfs/invalid", "bench/load", "internal/confine", "host/doctor", "internal/failpoint", "fleet", "invoke", "host/inspect", "host/instance", "isolation", "isolation/runc", "internal/pool", "supervisor/privsep", "rapid", "rapid/api", "rapid/telemetry", "isolation/egress/dns", "rootfs", "rootfs/image", "supervisor", "internal/tracing"},
	"internal/confine":        {},
	"host/doctor":             {"host/subid", "internal/confine"},
	"internal/failpoint":      {},
	"fleet":                   {"rapid"},
	"invoke":                  {"fleet", "internal/httpfast", "rapid"},
	"internal/httpfast":       {},
	"host/inspect":            {},
	"host/instance":           {"host/subid", "internal/runfolder"},
	"isolation":               {},
	"isolation/egress":        {"internal/failpoint", "isolation"},
	"isolation/cgroup":        {"isolation"},
	"isolation/runc":          {"internal/failpoint", "isolation", "isolation/egress", "isolation/cgroup", "isolation/runc/reexec", "isolation/runc/stage", "isolation/wire", "internal/tracing"},
	"isolation/runc/reexec":   {},
	"isolation/runc/stage":    {},
	"isolation/wire":          {},
	"internal/pool":           {},
	"supervisor/privsep":      {"isolation", "isolation/cgroup", "isolation/wire", "supervisor", "internal/tracing"},
	"rapid":                   {"internal/failpoint", "isolation", "rapid/telemetry", "supervisor", "internal/tracing"},
	"rapid/api":               {"internal/httpfast", "rapid", "rapid/telemetry"},
	"rapid/internal/fakesup":  {"isolation", "supervisor"},
	"rapid/telemetry":         {},
	"isolation/egress/dns":    {},
	"rootfs":                  {"rootfs/extract", "rootfs/invalid", "rootfs/store"},
	"rootfs/extract":          {"rootfs/invalid"},
	"rootfs/image":            {"rootfs", "rootfs/extract", "rootfs/invalid", "rootfs/store"},
	"rootfs/internal/ziptest": {},
	"rootfs/invalid":          {},
	"rootfs/store":            {"internal/failpoint", "rootfs/extract", "rootfs/invalid"},
	"host/subid":              {"internal/runfolder"},
	"internal/runfolder":      {},
	"supervisor":              {"isolation", "isolation/wire"},
	"internal/testdaemon":     {},
	"internal/tracing":        {},

	// The conformance suite is a module of its own and knows nothing of the product: it
	// talks to it over the wire.
	"conformance":                 {},
	"conformance/actor":           {"conformance/script"},
	"conformance/cases":           {"conformance/script", "conformance/suite"},
	"conformance/cmd/conformance": {"conformance", "conformance/actor", "conformance/cases", "conformance/suite"},
	"conformance/script":          {},
	"conformance/suite":           {"conformance/script"},

	// The benchmark looks from outside too; only what measures the engine has it inside.
	"bench/clock":     {},
	"bench/cmd/bench": {"bench/engine", "bench/result", "bench/suite", "isolation/runc"},
	"bench/engine":    {"host/instance", "host/subid", "isolation", "isolation/runc", "rootfs", "rootfs/store", "supervisor"},
	"bench/floor":     {"bench/clock"},
	"bench/function":  {"bench/clock"},
	"bench/load":      {"bench/clock"},
	"bench/plot":      {},
	"bench/result":    {"bench/load", "bench/plot"},
	"bench/suite":     {"bench/engine", "bench/load", "bench/result", "internal/testdaemon", "isolation/runc"},

	// What runs inside sandboxes must build without the rest.
	"examples/extension-go":        {},
	"examples/go-echo":             {},
	"examples/go-sigterm":          {},
	"integration":                  {},
	"integration/actor":            {"conformance/actor", "conformance/script"},
	"integration/audit":            {},
	"integration/clients":          {},
	"integration/clients/go":       {},
	"integration/containment":      {},
	"integration/dockerspec":       {},
	"integration/images":           {},
	"integration/internal/harness": {"conformance/script", "host/subid", "internal/failpoint", "internal/testdaemon"},
	"integration/lifecycle":        {},
	"integration/network":          {},
	"integration/recovery":         {},
}

// onlyIn names the packages that alone may import what begins with a path: the live
// libcontainer joins namespaces when it is linked in, cgo is where it is.
var onlyIn = map[string][]string{
	"github.com/opencontainers/runc/libcontainer/nsenter": {"isolation/runc/reexec"},
	"github.com/opencontainers/runc/libcontainer/exeseal": {"isolation/runc"},
	"github.com/opencontainers/cgroups":                   {"bench/engine", "isolation", "isolation/runc"},
	"github.com/containerd/cgroups":                       {"isolation/runc"},
	"github.com/opencontainers/runc/libcontainer":         {"bench/engine", "isolation", "isolation/runc", "isolation/runc/reexec"},
	"github.com/google/go-containerregistry":              {"rootfs/image"},
	"go.opentelemetry.io/otel/sdk":                        {"cmd/sandboxd"},
	"github.com/spf13/":                                   {"cmd/sandboxd"},
	"C":                                                   {"isolation/runc/reexec", "isolation/runc/stage"},
}

// file is one Go file of the project.
type file struct {
	pkg     string // its package's path below the module
	path    string
	test    bool
	imports []string
}

func TestImportsPointOneWay(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range files(t) {
		seen[f.pkg] = true
		may, known := allowed[f.pkg]
		if !known {
			t.Errorf("%s: package %s has no row in this test: say what it may import", f.path, f.pkg)
			continue
		}
		if f.test {
			continue // tests may look further
		}
		for _, path := range f.imports {
			ours, ok := strings.CutPrefix(path, module+"/")
			if ok && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s, which package %s may not", f.path, ours, f.pkg)
			}
		}
	}
	for pkg := range allowed {
		if !seen[pkg] {
			t.Errorf("package %s is gone: remove its row", pkg)
		}
	}
}

func TestForeignImportsStayWhereTheyBelong(t *testing.T) {
	for _, f := range files(t) {
		if f.test {
			continue
		}
		for _, path := range f.imports {
			for prefix, where := range onlyIn {
				if strings.HasPrefix(path, prefix) && (prefix != "C" || path == "C") && !slices.Contains(where, f.pkg) {
					t.Errorf("%s imports %s, which only %v may", f.path, path, where)
				}
			}
		}
	}
}

// TestInitHandlerIsSmall keeps the init handler free of what makes it large: it is
// resident in every domain.
func TestInitHandlerIsSmall(t *testing.T) {
	large := []string{"net", "net/http", "fmt", "encoding/json", "reflect"}
	for _, f := range files(t) {
		if f.test || f.pkg != "cmd/sandbox-init" {
			continue
		}
		for _, path := range f.imports {
			if slices.Contains(large, path) {
				t.Errorf("%s imports %s, which makes the init handler large", f.path, path)
			}
		}
	}
}

// files parses the imports of every Go file of the module and of that of the
// conformance suite.
func files(t *testing.T) []file {
	t.Helper()
	var all []file
	tree := os.DirFS("..")
	err := fs.WalkDir(tree, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			hidden := strings.HasPrefix(entry.Name(), ".") && path != "."
			if hidden || entry.Name() == "testdata" || path != "conformance" && isOtherModule(tree, path) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		source, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, source, parser.ImportsOnly)
		if err != nil {
			return err
		}
		f := file{pkg: filepath.Dir(path), path: path, test: strings.HasSuffix(path, "_test.go")}
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, name)
		}
		all = append(all, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("no Go file found")
	}
	return all
}

// TestConformanceStandsAlone keeps the conformance suite apart from the product: it
// imports nothing of ours, and only the integration tests import it.
func TestConformanceStandsAlone(t *testing.T) {
	const suite = module + "/conformance"
	within := func(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	for _, f := range files(t) {
		inside := within(f.pkg, "conformance")
		for _, path := range f.imports {
			if inside && within(path, module) && !within(path, suite) {
				t.Errorf("%s imports %s: the conformance suite knows nothing of the product", f.path, path)
			}
			if !inside && within(path, suite) && !within(f.pkg, "integration") {
				t.Errorf("%s imports %s: only the integration tests may", f.path, path)
			}
		}
	}
}

// isOtherModule reports whether a folder below the root has a go.mod of its own.
func isOtherModule(tree fs.FS, dir string) bool {
	_, err := fs.Stat(tree, dir+"/go.mod")
	return err == nil && dir != "."
}
