package inspect

import (
	"os"
	"slices"
	"testing"
)

// The control: a process that is not in a sandbox, this one, fails most expectations.
func TestPostureOfTheHost(t *testing.T) {
	findings, err := Reader{}.judge(Process{PID: os.Getpid(), Role: RoleRuntime})
	if err != nil {
		t.Fatal(err)
	}
	met := []string{}
	for _, f := range findings {
		if f != nil && f.Met {
			met = append(met, f.Check)
		}
	}
	for _, check := range []string{
		"user, group, other groups", "host ids", "own namespaces", "writable mounts", "mounts with devices",
		"init handler's program", "/sys", "limits of the process", "first to go when the host is out of memory",
	} {
		if slices.Contains(met, check) {
			t.Errorf("%s is met outside of a sandbox too", check)
		}
	}
	if !slices.ContainsFunc(findings, func(f *Finding) bool { return f != nil && f.Check == "capabilities" }) {
		t.Error("nothing is said of capabilities")
	}
}

// What the masks of /proc hide, and only that, is no longer readable.
func TestUnmaskedFindsWhatIsReadable(t *testing.T) {
	got, err := unmasked(subject{dir: "/proc/self"})
	if err != nil || got == "nothing of the host's secrets" {
		t.Errorf("on the host: %q, %v", got, err)
	}
}

// With the host's network no network of its own is wanted, and all else still is.
func TestExemptNetwork(t *testing.T) {
	host := "user pid mnt ipc uts cgroup"
	got := ExemptNetwork([]Finding{
		{Check: checkNamespaces, Want: "user pid mnt net ipc uts cgroup", Got: host},
		{Check: checkNamespaces, Want: "user pid mnt net ipc uts cgroup", Got: "user pid"},
		{Check: checkInterfaces, Want: "lo", Got: "eth0 lo wlan0"},
		{Check: "root", Want: "read-only", Got: "writable"},
	})
	want := []Finding{
		{Check: checkNamespaces, Want: host, Got: host, Met: true},
		{Check: checkNamespaces, Want: host, Got: "user pid"},
		{Check: "root", Want: "read-only", Got: "writable"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
