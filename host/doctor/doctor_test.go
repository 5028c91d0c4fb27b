package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/host/subid"
)

// fakeHost makes a host whose files are the given ones.
func fakeHost(t *testing.T, files map[string]string) Host {
	t.Helper()
	h := Host{Root: t.TempDir(), IDBase: subid.DefaultIDBase, Cgroups: Cgroups{Mode: "unified"}, Egress: func() error { return nil }, Sysinfo: func() error { return nil },
		Locale: func() (string, bool, error) { return "en_US.UTF-8", true, nil }}
	for name, text := range files {
		path := h.path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestChecksThatReadFiles(t *testing.T) {
	cgroups := func(c Cgroups) func(*Host) { return func(h *Host) { h.Cgroups = c } }
	tests := map[string]struct {
		look    check
		files   map[string]string
		change  func(*Host)
		missing bool
		want    string // part of what is seen or of the fix
	}{
		"pid_max low":      {byName("process ids"), map[string]string{"proc/sys/kernel/pid_max": "4096\n"}, nil, true, "pid_max=4194304"},
		"pid_max":          {byName("process ids"), map[string]string{"proc/sys/kernel/pid_max": "32768\n"}, nil, false, "32768"},
		"inotify low":      {byName("inotify"), map[string]string{"proc/sys/fs/inotify/max_user_instances": "8\n"}, nil, true, "max_user_instances"},
		"inotify missing":  {byName("inotify"), nil, nil, true, "no such file"},
		"locale of Lambda": {byName("locale"), nil, nil, false, "LANG=en_US.UTF-8"},
		"another locale":   {byName("locale"), nil, func(h *Host) { h.Locale = func() (string, bool, error) { return "C.UTF-8", false, nil } }, true, "LANG=C.UTF-8"},
		"unknown locale":   {byName("locale"), nil, func(h *Host) { h.Locale = func() (string, bool, error) { return "", false, os.ErrPermission } }, true, "permission denied"},
		"psi":              {byName("pressure stall information"), map[string]string{"proc/pressure/memory": "some\n"}, nil, false, "on"},
		"no psi":           {byName("pressure stall information"), nil, nil, true, "psi=1"},
		"swap v2":          {byName("swap accounting"), map[string]string{"sys/fs/cgroup/a/memory.swap.max": "max\n"}, nil, false, "on"},
		"swap v1":          {byName("swap accounting"), map[string]string{"sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": "1\n"}, nil, false, "on"},
		"no swap at all":   {byName("swap accounting"), map[string]string{"proc/swaps": "Filename Type\n"}, nil, false, "no swap"},
		"swap unbounded":   {byName("swap accounting"), map[string]string{"proc/swaps": "Filename Type\n/dev/sda2 partition\n"}, nil, true, "swapaccount=1"},
		"no cgroups":       {byName("cgroups"), nil, cgroups(Cgroups{Mode: "none"}), true, "mount -t cgroup2"},
		"no memory":        {byName("cgroups"), nil, cgroups(Cgroups{Mode: "unified", Missing: []string{"memory"}}), true, "cgroup_enable=memory"},
		"hidden tree":      {byName("cgroups"), nil, cgroups(Cgroups{Mode: "hybrid", Trees: []string{"/etc"}}), true, "/etc is hidden"},
		"hybrid":           {byName("cgroups"), nil, cgroups(Cgroups{Mode: "hybrid"}), false, "hybrid"},
		"legacy":           {byName("freeze and kill"), nil, cgroups(Cgroups{Mode: "legacy"}), true, "v1 freezer"},
		"egress":           {byName("egress"), nil, nil, false, "forwarding"},
		"no egress":        {byName("egress"), nil, func(h *Host) { h.Egress = func() error { return errors.New("no veth") } }, true, "not possible, all else is no veth"},
		"sysinfo":          {byName("sysinfo"), nil, nil, false, "their own memory"},
		"host's sysinfo":   {byName("sysinfo"), nil, func(h *Host) { h.Sysinfo = func() error { return errors.New("ptrace_scope is 2") } }, true, "memory of the host from sysinfo(2) ptrace_scope is 2"},
		"no scope needed":  {byName("systemd scope"), nil, nil, false, "not needed"},
		"ids taken":        {byName("host ids"), map[string]string{"etc/subuid": "ann:1879048192:65536\n"}, nil, true, "ann"},
		"ids":              {byName("host ids"), nil, nil, false, "4094 free ranges"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := fakeHost(t, tt.files)
			if tt.change != nil {
				tt.change(&h)
			}
			o := tt.look.look(t.Context(), h)
			if o.missing != tt.missing || !strings.Contains(o.seen+" "+o.fix, tt.want) {
				t.Errorf("%+v; want missing %v and %q", o, tt.missing, tt.want)
			}
		})
	}
}

// byName finds a check.
func byName(name string) check {
	for _, c := range append(mustHaves[:len(mustHaves):len(mustHaves)], niceToHaves...) {
		if c.name == name {
			return c
		}
	}
	panic("no check " + name)
}

func TestScopeNeedsSystemdRun(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	o := lookScope(t.Context(), Host{Cgroups: Cgroups{NeedsScope: true}})
	if !o.missing || !strings.Contains(o.fix, "Delegate=yes") {
		t.Errorf("%+v", o)
	}
}

func TestNewEnough(t *testing.T) {
	for release, want := range map[string]bool{
		"5.10.0-28-amd64": false, "5.18.9": false, "5.19.0": true, "6.1.0-18-amd64": true, "10.0": true, "": false, "odd": false,
	} {
		if got := newEnough(release); got != want {
			t.Errorf("newEnough(%q) = %v, want %v", release, got, want)
		}
	}
}

// What a must-have is decides between Fail and Warn, and only what is missing has a fix.
func TestExamine(t *testing.T) {
	h := fakeHost(t, nil)
	h.Cgroups = Cgroups{Mode: "none"}
	seen := map[string]Finding{}
	for _, f := range Examine(t.Context(), h) {
		seen[f.Check] = f
		if (f.Status == OK) != (f.Fix == "") || f.Seen == "" {
			t.Errorf("%+v: what is missing has a fix, and only that", f)
		}
	}
	if len(seen) != len(mustHaves)+len(niceToHaves) {
		t.Errorf("%d findings for %d checks", len(seen), len(mustHaves)+len(niceToHaves))
	}
	if seen["cgroups"].Status != Fail || seen["inotify"].Status != Warn {
		t.Errorf("cgroups %s, inotify %s; want FAIL and WARN", seen["cgroups"].Status, seen["inotify"].Status)
	}
	var missing []string
	for _, f := range Missing(t.Context(), h) {
		missing = append(missing, f.Check)
	}
	if !strings.Contains(strings.Join(missing, " "), "cgroups") || strings.Contains(strings.Join(missing, " "), "inotify") {
		t.Errorf("Missing: %v; want cgroups and no inotify", missing)
	}
}
