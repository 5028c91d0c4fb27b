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

// ground says what the packages are for that any other may need: they know this machine,
// or nothing, and import nothing from above. An arrow to one of them needs no reason of
// its own.
var ground = map[string]string{
	"host":                "the error of what this machine cannot do",
	"host/memory":         "how much memory the host has",
	"host/subid":          "the ranges of host ids, and who has which",
	"internal/accept":     "loops that accept go on after errors that pass",
	"internal/cli":        "flags and tables of commands",
	"internal/confine":    "a process takes from itself what it does not need",
	"internal/descriptor": "descriptors that stay open while they are used",
	"internal/exit":       "exit codes and the last message",
	"internal/failpoint":  "places where tests end the process",
	"internal/filetable":  "which descriptors a process has",
	"internal/httpfast":   "requests and answers of known form, without net/http",
	"internal/logging":    "log lines on streams that may be slow",
	"internal/pool":       "things made ahead of need",
	"internal/runfolder":  "the folder of what runs",
	"internal/seal":       "secrets are encrypted where they are stored",
	"internal/seqpacket":  "messages with open files",
	"internal/storeurl":   "the address of a database",
	"internal/testdaemon": "a daemon under test",
	"internal/testtime":   "the limits of tests on slow machines",
	"internal/tracing":    "the steps of a cold start",
}

// arrows are the packages of ours that a package imports, each with the reason; those to
// the ground have none. Who adds an arrow must name its reason, and who adds a package
// decides where it stands.
type arrows map[string]string

var allowed = map[string]arrows{
	// Commands.
	"cmd/sandbox-init":  {"isolation/wire": "answers the supervisor"},
	"cmd/sandbox-stage": {"isolation/runc/reexec": "is what libcontainer executes"},
	"cmd/sandboxd": {
		"bench/load":       "bench sends requests",
		"daemon":           "run is its root side",
		"daemon/admin":     "ps and inspect ask running daemons",
		"daemon/backup":    "the binary is also the process that reads backups",
		"daemon/control":   "the binary is also the control process",
		"daemon/unpack":    "the binary is also the process that takes apart packages",
		"daemon/worker":    "the binary is also the worker",
		"function":         "flags become settings",
		"host/doctor":      "doctor prints what it finds",
		"host/inspect":     "inspect prints what it reads",
		"invoke":           "flags name the invoke modes",
		"internal/cli":     "",
		"internal/exit":    "",
		"internal/message": "flags become the worker's configuration",
		"isolation":        "flags name profiles and networks",
		"isolation/runc":   "doctor and inspect know the filters that it compiles",
		"layer":            "the binary is also the program that installs a layer",
		"rapid":            "flags name the ways to initialize",
		"rootfs":           "flags name code, layers and base",
		"rootfs/store":     "prune collects",
		"host/subid":       "", "internal/failpoint": "", "internal/logging": "", "internal/runfolder": "", "internal/seal": "", "internal/storeurl": "",
	},

	// The root side.
	"daemon": {
		"daemon/admin":         "tells ps what runs, and control its operators",
		"daemon/unpack":        "starts the processes that take apart packages",
		"function":             "knows what programs, /tmp and limits a function wants",
		"host/doctor":          "refuses a host that lacks a must-have",
		"host/instance":        "is one",
		"internal/message":     "sends the worker its configuration, and takes revisions",
		"internal/registry":    "serves the control process's requests",
		"isolation":            "makes the Spec of a sandbox",
		"isolation/egress/dns": "finds the host's name servers",
		"isolation/runc":       "makes sandboxes",
		"isolation/wire":       "has an init handler start the program that installs a layer",
		"layer":                "makes layers of what it names",
		"rootfs":               "finds a function's files",
		"rootfs/extract":       "bounds what control has extracted",
		"rootfs/image":         "finds an image's files",
		"rootfs/invalid":       "tells control what is wrong with a package",
		"rootfs/store":         "keeps extracted trees",
		"supervisor/privsep":   "serves the worker's requests",
		"host":                 "", "host/memory": "", "host/subid": "", "internal/confine": "", "internal/descriptor": "", "internal/exit": "", "internal/failpoint": "",
		"internal/filetable": "", "internal/logging": "", "internal/pool": "", "internal/seal": "", "internal/seqpacket": "", "internal/storeurl": "", "internal/tracing": "",
	},
	"daemon/backup": {
		"internal/message":  "takes its job, and answers",
		"internal/registry": "gets connections to the database from root",
		"state":             "checks and restores backups",
		"state/blob":        "restores code",
		"state/postgres":    "restores in a database",
		"state/sqlite":      "restores in a folder",
		"internal/confine":  "", "internal/exit": "", "internal/seal": "",
	},
	"daemon/control": {
		"daemon/admin":            "answers operators' commands",
		"daemon/control/folder":   "reads code from the operator's folders",
		"daemon/control/operator": "serves operators",
		"daemon/control/secrets":  "encrypts secrets again after a rotation",
		"function":                "passes on what root has found",
		"internal/message":        "takes its configuration, and answers the worker",
		"internal/registry":       "registers revisions with root",
		"lambda":                  "answers clients with it",
		"lambda/access":           "knows who may do what",
		"lambda/sigv4":            "verifies signatures",
		"state":                   "keeps functions in a store",
		"state/blob":              "keeps code",
		"state/postgres":          "has a store in a database",
		"state/sqlite":            "has a store of its own",
		"internal/seal":           "",
		"internal/accept":         "", "internal/confine": "", "internal/exit": "", "internal/failpoint": "", "internal/logging": "",
	},
	"daemon/control/folder": {
		"lambda":              "refuses what is no code",
		"internal/descriptor": "",
	},
	"daemon/control/operator": {
		"daemon/admin":     "its answers",
		"function":         "names of functions",
		"internal/message": "numbers of the worker",
		"lambda":           "counts what it does",
		"lambda/access":    "makes and revokes keys",
		"state":            "counts what it has",
		"internal/logging": "",
	},
	"daemon/control/secrets": {
		"lambda":        "environments",
		"lambda/access": "secrets of access keys",
		"state":         "keeps them in a store",
		"internal/seal": "", "internal/failpoint": "",
	},
	"daemon/admin": {
		"function":        "reports name functions",
		"host/instance":   "finds running daemons",
		"isolation":       "reports name domains",
		"internal/accept": "", "internal/cli": "", "internal/runfolder": "",
	},
	"daemon/unpack": {
		"isolation/runc": "filters system calls by the table of sandboxes",
		"isolation/wire": "waits for the end of an installation in a sandbox",
		"layer":          "its proxy speaks to the program there",
		"rootfs/extract": "extracts zips",
		"rootfs/image":   "reads and unpacks images",
		"rootfs/invalid": "passes on what is wrong with a package",
		"host":           "", "host/subid": "", "internal/confine": "",
	},

	// The data plane.
	"daemon/worker": {
		"daemon/admin":         "tells ps the states of sandboxes, and reads logs for commands",
		"daemon/worker/logs":   "keeps what functions log",
		"fleet":                "has one for each revision",
		"function":             "makes configurations of settings",
		"internal/message":     "takes its configuration, and sends revisions",
		"invoke":               "serves the Invoke API",
		"isolation":            "knows the names of domains and the network's policy",
		"isolation/egress/dns": "answers the lookups of sandboxes",
		"lambda/sigv4":         "verifies who invokes",
		"rapid":                "leads sandboxes",
		"rapid/api":            "serves the Runtime API",
		"rapid/telemetry":      "writes what functions log",
		"supervisor":           "has one for each sandbox",
		"supervisor/privsep":   "asks root for sandboxes",
		"host/memory":          "", "internal/confine": "", "internal/exit": "", "internal/failpoint": "", "internal/filetable": "", "internal/logging": "", "internal/tracing": "",
	},
	"daemon/worker/logs": {},
	"invoke": {
		"invoke/httpevent": "makes events of HTTP requests, and responses of answers",
		"rapid":            "invocations and results",
		"internal/accept":  "", "internal/httpfast": "",
	},
	"invoke/httpevent": {},

	// The control plane.
	"lambda": {
		"function": "makes settings of requests, and keeps the policy on environment names",
		"state":    "keeps functions in a store",
	},

	"fleet": {"rapid": "runs invocations in sandboxes"},
	"rapid": {
		"function":           "the policy on environment names",
		"isolation":          "names domains",
		"rapid/telemetry":    "logs and records what happens",
		"supervisor":         "starts and ends processes",
		"internal/failpoint": "", "internal/tracing": "",
	},
	"rapid/api": {
		"rapid":           "passes requests to the sandbox",
		"rapid/telemetry": "takes subscriptions",
		"internal/accept": "", "internal/httpfast": "",
	},
	"rapid/internal/fakesup": {
		"isolation":  "names domains",
		"supervisor": "stands in for one",
	},
	"rapid/telemetry": {},

	// Domains and processes.
	"supervisor": {
		"isolation":      "asks for domains by Spec",
		"isolation/wire": "talks to init handlers",
	},
	"supervisor/privsep": {
		"internal/message":    "errors keep their kind",
		"isolation":           "carries policies and usage",
		"isolation/cgroup":    "freezes and reads through open files",
		"isolation/wire":      "carries the sockets of init handlers",
		"supervisor":          "is a Box across the line between processes",
		"internal/descriptor": "", "internal/seqpacket": "", "internal/tracing": "",
	},
	"isolation":            {"host": ""},
	"isolation/cgroup":     {"isolation": "limits and usage", "internal/descriptor": ""},
	"isolation/egress":     {"isolation": "network policies", "host": "", "internal/accept": "", "internal/descriptor": "", "internal/failpoint": ""},
	"isolation/egress/dns": {"internal/accept": ""},
	"isolation/runc": {
		"isolation":             "makes what a Spec says",
		"isolation/cgroup":      "freezes and kills",
		"isolation/egress":      "connects network namespaces",
		"isolation/runc/reexec": "the daemon's binary must not be what libcontainer executes",
		"isolation/runc/stage":  "is what libcontainer executes instead",
		"isolation/wire":        "waits for the init handler's handshake",
		"host":                  "", "internal/accept": "", "internal/descriptor": "", "internal/failpoint": "", "internal/tracing": "",
	},
	"isolation/runc/reexec": {},
	"isolation/runc/stage":  {},
	"isolation/wire":        {"internal/descriptor": ""},

	// The Lambda API.
	"lambda/access": {
		"internal/message": "answers the worker",
		"lambda":           "errors and actions of the API",
		"lambda/sigv4":     "verifies signatures",
		"state":            "keeps keys in a store",
		"internal/seal":    "",
	},
	"lambda/sigv4": {},

	// The state of the control plane.
	"state/blob":     {"internal/failpoint": ""},
	"state/powercut": {"state": "changes it", "state/blob": "changes its blobs", "state/sqlite": "opens it", "internal/seal": ""},

	// What both sides share, and files.
	"function":         {},
	"layer":            {},
	"internal/message": {"function": "carries settings", "isolation": "carries network policies"},
	"internal/registry": {
		"function":           "carries what root has found in a function's files",
		"internal/message":   "carries revisions; errors keep their kind",
		"internal/seqpacket": "",
	},
	"rootfs": {
		"rootfs/extract": "limits of zips",
		"rootfs/invalid": "says what is wrong with a package",
		"rootfs/store":   "looks extracted trees up",
	},
	"rootfs/extract": {"rootfs/invalid": "says what is wrong with a zip", "internal/descriptor": ""},
	"rootfs/image": {
		"rootfs":              "is a source of a sandbox's files",
		"rootfs/extract":      "bounds what is written",
		"rootfs/invalid":      "says what is wrong with an image",
		"rootfs/store":        "looks unpacked images up",
		"internal/descriptor": "",
	},
	"rootfs/internal/ziptest": {},
	"rootfs/invalid":          {"host": ""},
	"rootfs/store": {
		"rootfs/extract":     "measures what was extracted",
		"rootfs/invalid":     "says what is wrong with a zip",
		"internal/failpoint": "",
	},

	// What the control plane must not lose.
	"state":                 {},
	"state/postgres":        {"state": "opens one in PostgreSQL", "internal/storeurl": ""},
	"state/postgres/pgtest": {},
	"state/sqlite":          {"state": "opens one in a folder"},
	"state/statetest":       {"state": "tests one"},

	// This machine, and the rest of the ground.
	"host":                {},
	"host/doctor":         {"host/subid": "", "internal/confine": ""},
	"host/hosttest":       {"host": ""},
	"host/inspect":        {"host": ""},
	"host/instance":       {"host/subid": "", "internal/runfolder": ""},
	"host/memory":         {},
	"host/subid":          {"internal/runfolder": ""},
	"internal/accept":     {},
	"internal/cli":        {},
	"internal/confine":    {"host": "", "internal/descriptor": ""},
	"internal/descriptor": {},
	"internal/exit":       {"internal/logging": ""},
	"internal/failpoint":  {},
	"internal/filetable":  {},
	"internal/forgetfs":   {},
	"internal/httpfast":   {},
	"internal/logging":    {},
	"internal/pool":       {},
	"internal/runfolder":  {},
	"internal/seal":       {},
	"internal/seqpacket":  {"internal/descriptor": ""},
	"internal/storeurl":   {},
	"internal/testdaemon": {},
	"internal/testtime":   {},
	"internal/tracing":    {},

	// Measurements.
	"bench/clock":     {},
	"bench/cmd/bench": {"bench/engine": "commands of its processes", "bench/result": "reads and writes results", "bench/suite": "runs it", "isolation/runc": "finds its embedded programs"},
	"bench/engine":    {"host/instance": "is one", "host/subid": "", "isolation": "makes Specs", "isolation/runc": "measures it", "rootfs": "finds the function's files", "rootfs/store": "keeps them", "supervisor": "starts processes"},
	"bench/floor":     {"bench/clock": "stamps times"},
	"bench/function":  {"bench/clock": "stamps times"},
	"bench/load":      {"bench/clock": "stamps times"},
	"bench/plot":      {},
	"bench/result":    {"bench/load": "summarizes its samples", "bench/plot": "draws them"},
	"bench/suite":     {"bench/engine": "measures sandboxes without a daemon", "bench/load": "sends requests", "bench/result": "writes results", "isolation/runc": "detects the host", "internal/testdaemon": ""},

	// The conformance suite is a module of its own and knows nothing of the product.
	"conformance":                 {},
	"conformance/actor":           {"conformance/script": "does what a script says"},
	"conformance/cases":           {"conformance/script": "writes scripts", "conformance/suite": "are its cases"},
	"conformance/cmd/conformance": {"conformance": "the list of requirements", "conformance/actor": "is also the program in the sandbox", "conformance/cases": "runs them", "conformance/suite": "runs it"},
	"conformance/script":          {},
	"conformance/suite":           {"conformance/script": "sends scripts"},

	// What runs inside sandboxes must build without the rest.
	"examples/extension-go":     {},
	"examples/go-echo":          {},
	"examples/go-sigterm":       {},
	"integration":               {},
	"integration/actor":         {"conformance/actor": "is it, with more operations", "conformance/script": "adds operations"},
	"integration/audit":         {},
	"integration/echo":          {},
	"integration/clients":       {},
	"integration/clients/go":    {},
	"integration/clients/webgo": {},
	"integration/dockerspec":    {},

	// End-to-end tests.
	"integration/containment": {},
	"integration/images":      {},
	"integration/lifecycle":   {},
	"integration/network":     {},
	"integration/recovery":    {},
	"integration/serve":       {},
	"integration/takeover": {
		"daemon":             "is its root side",
		"daemon/control":     "confines its control process",
		"daemon/unpack":      "extracts for its root side",
		"function":           "answers the worker",
		"internal/message":   "reads its configuration",
		"isolation":          "names networks and domains",
		"isolation/wire":     "holds the sockets of init handlers",
		"rootfs":             "names the base",
		"rootfs/store":       "names the retention",
		"supervisor/privsep": "asks root for sandboxes",
		"host/subid":         "", "internal/confine": "", "internal/exit": "",
	},
	"integration/internal/harness": {
		"conformance/script": "tells the actor what to do",
		"host/subid":         "", "internal/failpoint": "", "internal/testdaemon": "", "internal/testtime": "",
	},

	"architecture": {},
}

// A room is a package that must not come to use others, not even through packages between.
var rooms = []struct {
	pkg   string
	never []string
	why   string
}{
	{"daemon", []string{"invoke", "fleet", "rapid", "lambda", "state"}, "no parser of what strangers say may run as root"},
	{"supervisor/privsep", []string{"invoke", "fleet", "rapid"}, "its server runs as root"},
	{"internal/registry", []string{"invoke", "fleet", "rapid", "lambda", "state"}, "its server runs as root"},
	{"daemon/control", []string{"isolation/runc", "rootfs", "fleet", "rapid", "supervisor", "daemon"}, "it has no privilege to use them"},
	{"daemon/worker", []string{"isolation/runc", "rootfs", "host/doctor", "daemon"}, "it has no privilege to use them"},
	{"fleet", []string{"invoke", "daemon", "isolation/runc"}, "how requests come in is not its business"},
	{"rapid", []string{"fleet", "invoke", "daemon", "isolation/runc"}, "one sandbox's life knows no other sandbox"},
	{"supervisor", []string{"rapid", "isolation/runc"}, "it knows nothing of Lambda, and reaches the kernel through an interface"},
	{"isolation/runc", []string{"supervisor", "rapid", "function"}, "it makes what a Spec says"},
	{"state", []string{"function", "daemon"}, "it stores bytes, and does not know what they mean"},
	{"rootfs", []string{"isolation", "supervisor", "daemon"}, "files know nothing of sandboxes"},
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
	"github.com/hanwen/go-fuse":                           {"internal/forgetfs"},
	"github.com/jackc/pgx":                                {"state/postgres"},
	"github.com/mattn/go-sqlite3":                         {"state/sqlite"},
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
			if _, listed := may[ours]; ok && !listed {
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

// Every arrow has its reason, is used, and leads to a package that is there.
func TestArrowsHaveReasons(t *testing.T) {
	used := map[[2]string]bool{}
	for _, f := range files(t) {
		for _, path := range f.imports {
			if ours, ok := strings.CutPrefix(path, module+"/"); ok && !f.test {
				used[[2]string{f.pkg, ours}] = true
			}
		}
	}
	for pkg, list := range allowed {
		for to, why := range list {
			_, isGround := ground[to]
			switch {
			case isGround && why != "":
				t.Errorf("%s to %s: the reason of a package of the ground is in its own row", pkg, to)
			case !isGround && why == "":
				t.Errorf("%s to %s: say why", pkg, to)
			case !used[[2]string{pkg, to}]:
				t.Errorf("%s no longer imports %s: remove the arrow", pkg, to)
			}
		}
	}
	for pkg := range ground {
		for to := range allowed[pkg] {
			if _, ok := ground[to]; !ok {
				t.Errorf("%s is ground and may not import %s", pkg, to)
			}
		}
	}
}

// No room comes to use another by a detour.
func TestRoomsStayApart(t *testing.T) {
	for _, r := range rooms {
		reached := map[string]string{r.pkg: ""} // and by which package
		for todo := []string{r.pkg}; len(todo) > 0; todo = todo[1:] {
			for to := range allowed[todo[0]] {
				if _, ok := reached[to]; !ok {
					reached[to] = todo[0]
					todo = append(todo, to)
				}
			}
		}
		for _, n := range r.never {
			if by, ok := reached[n]; ok {
				t.Errorf("%s reaches %s by %s, but %s", r.pkg, n, by, r.why)
			}
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
