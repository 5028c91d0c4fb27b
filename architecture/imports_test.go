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
	"architecture":                {},
	"bench/clock":                 {},
	"bench/cmd/bench":             {"bench/engine", "bench/result", "bench/suite", "isolation/runc"},
	"bench/engine":                {"host/instance", "host/subid", "isolation", "isolation/runc", "rootfs", "rootfs/store", "supervisor"},
	"bench/floor":                 {"bench/clock"},
	"bench/function":              {"bench/clock"},
	"bench/load":                  {"bench/clock"},
	"bench/plot":                  {},
	"bench/result":                {"bench/load", "bench/plot"},
	"bench/suite":                 {"bench/engine", "bench/load", "bench/result", "isolation/runc"},
	"cmd/sandbox-init":            {"isolation/wire"},
	"cmd/sandbox-stage":           {"isolation/runc/reexec"},
	"cmd/sandboxd":                {"bench/load", "daemon", "daemon/admin", "daemon/unpack", "daemon/worker", "function", "host/doctor", "host/inspect", "host/subid", "internal/cli", "internal/exit", "internal/message", "internal/runfolder", "isolation", "isolation/runc", "rapid", "rootfs", "rootfs/store"},
	"conformance":                 {},
	"conformance/actor":           {"conformance/script", "integration/inside"},
	"conformance/cases":           {"conformance/script", "conformance/suite"},
	"conformance/cmd/conformance": {"conformance", "conformance/actor", "conformance/cases", "conformance/suite"},
	"conformance/script":          {},
	"conformance/suite":           {"conformance/script"},
	"daemon":                      {"daemon/admin", "daemon/unpack", "function", "host", "host/doctor", "host/instance", "host/memory", "host/subid", "internal/confine", "internal/exit", "internal/failpoint", "internal/filetable", "internal/logging", "internal/message", "internal/pool", "internal/tracing", "isolation", "isolation/egress/dns", "isolation/runc", "rootfs", "rootfs/image", "rootfs/store", "supervisor/privsep"},
	"daemon/admin":                {"function", "host/instance", "internal/accept", "internal/cli", "isolation"},
	"daemon/unpack":               {"host", "host/subid", "internal/confine", "isolation/runc", "rootfs/extract", "rootfs/image", "rootfs/invalid"},
	"daemon/worker":               {"daemon/admin", "fleet", "function", "host/memory", "internal/confine", "internal/exit", "internal/filetable", "internal/logging", "internal/message", "internal/tracing", "invoke", "isolation", "isolation/egress/dns", "rapid", "rapid/api", "rapid/telemetry", "supervisor", "supervisor/privsep"},
	"examples/extension-go":       {},
	"examples/go-echo":            {},
	"examples/go-sigterm":         {},
	"fleet":                       {"rapid"},
	"function":                    {},
	"host":                        {},
	"host/doctor":                 {"host/subid", "internal/confine"},
	"host/hosttest":               {"host"},
	"host/inspect":                {"host"},
	"host/instance":               {"host/subid", "internal/runfolder"},
	"host/memory":                 {},
	"host/subid":                  {"internal/runfolder"},
	"integration":                 {},
	"integration/audit":           {},
	"integration/clients/go":      {},
	"integration/dockerspec":      {},
	"integration/inside":          {},
	"integration/script":          {},
	"integration/testextension":   {"integration/inside", "integration/script"},
	"integration/testruntime":     {"integration/inside", "integration/script"},
	"internal/accept":             {},
	"internal/cli":                {},
	"internal/confine":            {"host", "internal/descriptor"},
	"internal/descriptor":         {},
	"internal/exit":               {"internal/logging"},
	"internal/failpoint":          {},
	"internal/filetable":          {},
	"internal/httpfast":           {},
	"internal/logging":            {},
	"internal/message":            {"function", "isolation"},
	"internal/pool":               {},
	"internal/runfolder":          {},
	"internal/tracing":            {},
	"invoke":                      {"internal/accept", "internal/httpfast", "rapid"},
	"isolation":                   {"host"},
	"isolation/cgroup":            {"internal/descriptor", "isolation"},
	"isolation/egress":            {"host", "internal/accept", "internal/descriptor", "internal/failpoint", "isolation"},
	"isolation/egress/dns":        {"internal/accept"},
	"isolation/runc":              {"host", "internal/accept", "internal/descriptor", "internal/failpoint", "internal/tracing", "isolation", "isolation/cgroup", "isolation/egress", "isolation/runc/reexec", "isolation/runc/stage", "isolation/wire"},
	"isolation/runc/reexec":       {},
	"isolation/runc/stage":        {},
	"isolation/wire":              {"internal/descriptor"},
	"rapid":                       {"function", "internal/failpoint", "internal/tracing", "isolation", "rapid/telemetry", "supervisor"},
	"rapid/api":                   {"internal/accept", "internal/httpfast", "rapid", "rapid/telemetry"},
	"rapid/internal/fakesup":      {"isolation", "supervisor"},
	"rapid/telemetry":             {},
	"rootfs":                      {"rootfs/extract", "rootfs/invalid", "rootfs/store"},
	"rootfs/extract":              {"internal/descriptor", "rootfs/invalid"},
	"rootfs/image":                {"internal/descriptor", "rootfs", "rootfs/extract", "rootfs/invalid", "rootfs/store"},
	"rootfs/internal/ziptest":     {},
	"rootfs/invalid":              {"host"},
	"rootfs/store":                {"internal/failpoint", "rootfs/extract", "rootfs/invalid"},
	"supervisor":                  {"isolation", "isolation/wire"},
	"supervisor/privsep":          {"internal/descriptor", "internal/message", "internal/tracing", "isolation", "isolation/cgroup", "isolation/wire", "supervisor"},
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
	"go.opentelemetry.io/otel/sdk":                        {"daemon/worker"},
	"github.com/spf13/":                                   {"cmd/sandboxd", "internal/cli"},
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

// files parses the imports of every Go file of the module.
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
			if hidden || entry.Name() == "testdata" || isOtherModule(tree, path) {
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

// isOtherModule reports whether a folder below the root has a go.mod of its own.
func isOtherModule(tree fs.FS, dir string) bool {
	_, err := fs.Stat(tree, dir+"/go.mod")
	return err == nil && dir != "."
}
