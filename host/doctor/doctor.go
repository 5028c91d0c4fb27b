// Package doctor finds out what a host offers and lacks for sandboxd. Where that is
// cheap a check does the thing itself rather than read what the kernel claims. No
// check leaves anything behind.
package doctor

import (
	"cmp"
	"context"
	"os"
	"path/filepath"

	"github.com/sandboxd/sandboxd/host/subid"
)

// Status is the outcome of a check.
type Status string

// The outcomes of a check.
const (
	OK   Status = "OK"   // all is there
	Warn Status = "WARN" // something nice to have is missing: sandboxes run, with the restriction that is told
	Fail Status = "FAIL" // a must-have is missing: no sandbox can run
)

// Finding is what one check saw.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Seen   string `json:"seen"`
	Fix    string `json:"fix,omitempty"` // what to do; empty if Status is OK
}

// Cgroups is what isolation/runc found out about the host's cgroup trees.
type Cgroups struct {
	Mode       string   // "unified", "hybrid", "legacy" or "none"
	Trees      []string // where the trees that sandboxes need are mounted
	Missing    []string // controllers that sandboxd needs and the host lacks
	NeedsScope bool     // systemd owns the tree: the daemon must get a scope from it
}

// Host is what is examined.
type Host struct {
	Root    string // "" is "/"; tests put a tree of their own here, which only checks that read files look at
	Cgroups Cgroups
	IDBase  uint32                                         // first host id for sandboxes
	Egress  func() error                                   // tries what sandboxes need to reach a network; its error says the fix
	Sysinfo func() error                                   // tries what lets sysinfo(2) tell the memory of a sandbox; its error says the fix
	Locale  func() (name string, ofLambda bool, err error) // what functions get as LANG, and whether it is the same as on Lambda
}

// check looks at one thing.
type check struct {
	name string
	look func(context.Context, Host) outcome
}

// outcome is a Finding before it has its check's name; a missing thing is a Fail
// among the must-haves and a Warn among the others.
type outcome struct {
	missing   bool
	seen, fix string
}

func has(seen string) outcome          { return outcome{seen: seen} }
func lacks(seen, fix string) outcome   { return outcome{true, seen, fix} }
func (h Host) path(name string) string { return filepath.Join("/", h.Root, name) }
func (h Host) read(name string) (string, error) {
	b, err := os.ReadFile(h.path(name))
	return string(b), err
}

// mustHaves are what no sandbox can do without, cheapest and most telling first.
var mustHaves = []check{
	{"root", lookRoot},
	{"kernel", lookKernel},
	{"cgroups", lookCgroups},
	{"systemd scope", lookScope},
	{"namespaces", lookNamespaces},
	{"mount API", lookMountAPI},
	{"seccomp", lookSeccomp},
	{"overlayfs", lookFileSystem("overlay")},
	{"ext4", lookFileSystem("ext4")},
	{"loop devices", lookLoop},
	{"mke2fs", lookMke2fs},
	{"host ids", lookIDs},
	{"open files", lookOpenFiles},
}

// niceToHaves are what sandboxes run without, but less well.
var niceToHaves = []check{
	{"freeze and kill", lookV2Core},
	{"swap accounting", lookSwap},
	{"id-mapped mounts", lookIDMap},
	{"Landlock", lookLandlock},
	{"process ids", lookPIDMax},
	{"inotify", lookInotify},
	{"OOM protection", lookOOMScore},
	{"pressure stall information", lookPressure},
	{"egress", lookEgress},
	{"locale", lookLocale},
	{"sysinfo", lookSysinfo},
}

// Examine runs every check, must-haves first.
func Examine(ctx context.Context, h Host) []Finding {
	return append(run(ctx, h, mustHaves, Fail), run(ctx, h, niceToHaves, Warn)...)
}

// Missing returns the must-haves that the host lacks. It takes some milliseconds.
func Missing(ctx context.Context, h Host) []Finding {
	var missing []Finding
	for _, f := range run(ctx, h, mustHaves, Fail) {
		if f.Status == Fail {
			missing = append(missing, f)
		}
	}
	return missing
}

func run(ctx context.Context, h Host, checks []check, whenMissing Status) []Finding {
	findings := make([]Finding, 0, len(checks))
	for _, c := range checks {
		o := c.look(ctx, h)
		f := Finding{Check: c.name, Status: OK, Seen: o.seen}
		if o.missing {
			f.Status, f.Fix = whenMissing, cmp.Or(o.fix, "see docs/troubleshooting.md")
		}
		findings = append(findings, f)
	}
	return findings
}

// lookLocale tells the language of functions that run on the host's programs.
func lookLocale(_ context.Context, h Host) outcome {
	name, ofLambda, err := h.Locale()
	switch {
	case err != nil:
		return lacks(err.Error(), "see that /usr/lib/locale can be read")
	case !ofLambda:
		return lacks("functions get LANG="+name+", since /usr/lib/locale has no en_US.UTF-8", "localedef -i en_US -f UTF-8 en_US.UTF-8, with the package locales of Debian or glibc-langpack-en of Fedora")
	}
	return has("functions get LANG=" + name)
}

// lookIDs checks that the base of the id ranges belongs to nobody.
func lookIDs(_ context.Context, h Host) outcome {
	pool, err := subid.NewPool(h.IDBase, h.path("/"))
	if err != nil {
		return lacks(err.Error(), "pass another --id-base to run")
	}
	return has(plural(int(pool.Ranges), "free range", "free ranges") + " of 65,536 ids")
}
