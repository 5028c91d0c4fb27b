//go:build integration

package recovery

import (
	"archive/zip"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// pruned is what prune says in JSON.
type pruned struct {
	DryRun                 bool
	FreedBytes             int64
	Leftovers              int
	Removed, Unused, InUse []prunedItem
}

type prunedItem struct {
	Kind, Digest, From string
	Bytes              int64
}

// prune runs `sandboxd prune` for the folders.
func prune(t *testing.T, f harness.Folders, args ...string) (p pruned) {
	t.Helper()
	out := harness.SandboxdCommand(t, "", append([]string{"prune", "--state-dir", f.State, "--output=json"}, args...)...)
	if out.Code != 0 || out.Stderr != "" {
		t.Fatalf("%+v", out)
	}
	if err := json.Unmarshal([]byte(out.Stdout), &p); err != nil {
		t.Fatalf("%v in %s", err, out.Stdout)
	}
	return p
}

// names lists items by kind and what they were made from.
func names(items []prunedItem) string {
	var list []string
	for _, it := range items {
		list = append(list, it.Kind+":"+it.From)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// newBuild writes a zip of a function in shell, with a megabyte that differs each time.
func newBuild(t *testing.T, path string) {
	t.Helper()
	var data bytes.Buffer
	w := zip.NewWriter(&data)
	blob := make([]byte, 1<<20)
	_, _ = rand.Read(blob) // never fails
	for name, content := range map[string][]byte{"bootstrap": harness.ShellBootstrap, "blob": blob} {
		header := &zip.FileHeader{Name: name, Method: zip.Store}
		header.SetMode(0o755)
		entry, err := w.CreateHeader(header)
		if err == nil {
			_, err = entry.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, path, data.Bytes(), 0o644)
}

// stored is what the store takes on the disk, in bytes.
func stored(t *testing.T, f harness.Folders) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(f.State, "packages"), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// Many builds of one zip, each invoked once, leave in the state folder what the settings
// allow, the last builds, and nothing half made.
func TestStoreIsBounded(t *testing.T) {
	f := harness.NewFolders(t)
	code := filepath.Join(t.TempDir(), "function.zip")
	once := func(settings string) {
		t.Helper()
		newBuild(t, code)
		args := append(f.Flags(), "--event=-", "--pool=0", "--memory=512", harness.Config(t, settings), code)
		if out := harness.SandboxdCommand(t, "{}", append([]string{"run"}, args...)...); out.Code != 0 {
			t.Fatalf("%+v", out)
		}
	}
	const few = 3
	for range few {
		once("unused-age: 0\nunused-size: 0\n") // no bound
	}
	if all := prune(t, f, "--dry-run"); len(all.Removed) != few+1 { // and /tmp
		t.Fatalf("without a bound %d builds leave %+v", few, all)
	}

	const bound = 4 << 20
	for range harness.Rounds(t, 50) {
		once("unused-size: 4\n")
	}
	// The collection at the end of a daemon is cut short when the disk is slow. One that
	// lives on finishes it.
	d := harness.StartIn(t, f, "--memory=512", harness.Config(t, "unused-size: 4\n"), code)
	harness.Eventually(t, harness.Patience, func() string {
		p := prune(t, f, "--dry-run", "--older-than=24h") // would not remove anything
		var unused int64
		for _, it := range p.Unused {
			unused += it.Bytes
		}
		staged, err := os.ReadDir(filepath.Join(f.State, "packages", "staging"))
		if err != nil {
			t.Fatal(err)
		}
		if unused > bound || len(staged) > 0 {
			return fmt.Sprintf("%d bytes that nothing uses are kept, allowed are %d; staged are %v", unused, bound, staged)
		}
		if len(p.InUse) != 2 || len(p.Unused) < 2 || len(p.Unused) > few {
			return fmt.Sprintf("what is kept: %+v", p)
		}
		return ""
	})
	// The daemon's own are not among these: the build and the image of /tmp.
	if got, most := stored(t, f), int64(bound+3<<20); got > most {
		t.Errorf("the store takes %d bytes, want %d at most", got, most)
	}
	d.Stop()
}

// sums are the SHA-256 sums of all files below dir, by path.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	list := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			list[path] = fmt.Sprintf("%x", sha256.Sum256(harness.ReadFile(t, path)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// prune beside daemons removes nothing that they use, and all that they do not; what a
// killed daemon has used is not in use.
func TestPruneBesideDaemons(t *testing.T) {
	f := harness.NewFolders(t)
	old := filepath.Join(t.TempDir(), "old.zip")
	newBuild(t, old)
	first := harness.StartIn(t, f, "--memory=512", old)
	layer := harness.ZipFile(t, "data", 0o644, strings.NewReader("of the layer"))
	layout := harness.ImageLayout(t, map[string]any{"Entrypoint": []string{"/main"}, "WorkingDir": "/srv/app"})
	code := zippedRuntime(t)
	zipped := harness.StartIn(t, f, "--memory=512", "--layer", layer, code)
	image := harness.StartIn(t, f, "--memory=512", "--ephemeral-storage=600", "--image", layout)
	first.Stop()

	inUse := "image:" + filepath.Base(layout) + " layer:" + filepath.Base(layout) + " tmp:/tmp of 512.0 MiB tmp:/tmp of 600.0 MiB zip:function.zip zip:function.zip"
	before := sums(t, filepath.Join(f.State, "packages"))
	if p := prune(t, f, "--dry-run"); !p.DryRun || names(p.Removed) != "zip:old.zip" || names(p.InUse) != inUse {
		t.Errorf("planned: %+v", p)
	}
	if after := sums(t, filepath.Join(f.State, "packages")); len(after) != len(before) {
		t.Errorf("--dry-run has removed something: %v", after)
	}
	p := prune(t, f)
	if names(p.Removed) != "zip:old.zip" || p.FreedBytes < 1<<20 || names(p.InUse) != inUse || len(p.Unused) > 0 {
		t.Errorf("%+v", p)
	}
	for path := range before {
		if len(p.Removed) == 1 && strings.Contains(path, p.Removed[0].Digest) {
			delete(before, path)
		}
	}
	for range 2 { // in the sandboxes that are there, and in new ones
		if r := zipped.Do(script.Step{Op: "read", Path: "/opt/data"}); r.Results[0].Text != "of the layer" {
			t.Errorf("%+v", r.Results)
		}
		if r := image.Do(script.Step{Op: "read", Path: "here"}, script.Step{Op: "fill", Path: "/tmp/x", N: 1 << 20}); r.Results[0].Text != "in the image" || r.Results[1].Error != "" {
			t.Errorf("%+v", r.Results)
		}
		for _, d := range []*harness.Daemon{zipped, image} {
			d.Invoke(script.Event{Steps: []script.Step{{Op: "exit", N: 1}}})
		}
		prune(t, f, "--all")
	}
	if after := sums(t, filepath.Join(f.State, "packages")); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("files that are in use have changed: %v, before %v", after, before)
	}

	zipped.Crash()
	if p := prune(t, f); names(p.Removed) != "tmp:/tmp of 512.0 MiB zip:function.zip zip:function.zip" || len(p.InUse) != 3 {
		t.Errorf("after the kill of one: %+v", p)
	}
	harness.StartIn(t, f, "--memory=512", "--layer", layer, code).Do() // made anew
	image.Do()
}

// S-01: kill -9 at each step at which an entry of the store is made or removed. What is in
// the store then is whole; the next daemon works, and the next collection leaves nothing.
func TestStoreKilledAtEachStep(t *testing.T) {
	for _, step := range failpoint.StoreSteps {
		t.Run(string(step), func(t *testing.T) {
			f := harness.NewFolders(t)
			code := filepath.Join(t.TempDir(), "function.zip")
			newBuild(t, code)
			run := append([]string{"run", "--event=-", "--pool=0", "--memory=512"}, append(f.Flags(), code)...)
			pruning := []string{"prune", "--state-dir", f.State}
			killed := run
			if step != failpoint.ZipStaged && step != failpoint.EntryPublished { // steps of a removal
				if out := harness.SandboxdCommand(t, "{}", run...); out.Code != 0 {
					t.Fatalf("%+v", out)
				}
				killed = pruning
			}
			set(f.Faults(), t, step, "kill")
			cmd := exec.Command(faultySandboxd(t), killed...)
			cmd.Env = append(os.Environ(), failpoint.Variable+"="+f.Faults().Path)
			out := harness.Finish(t, "{}", cmd)
			if st := cmd.ProcessState.Sys().(syscall.WaitStatus); !st.Signaled() || st.Signal() != syscall.SIGKILL {
				t.Fatalf("it was not killed at its step: %+v", out)
			}
			clear(f.Faults(), t)

			entries, err := filepath.Glob(filepath.Join(f.State, "packages", "sha256", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if !harness.Exists(filepath.Join(e, "entry.json")) || !harness.Exists(filepath.Join(e, "tree", "tmp.ext4")) && (!harness.Exists(filepath.Join(e, "tree", "bootstrap")) || !harness.Exists(filepath.Join(e, "tree", "blob"))) {
					t.Errorf("%s is not whole", e)
				}
			}
			if out := harness.SandboxdCommand(t, "{}", run...); out.Code != 0 || strings.Contains(out.Stderr, "could not be removed") {
				t.Errorf("the next run: %+v", out)
			}
			harness.WantNothingLeft(t, f.State)
			prune(t, f)
			for _, dir := range []string{"sha256", "staging"} {
				if left, err := os.ReadDir(filepath.Join(f.State, "packages", dir)); err != nil || len(left) > 0 {
					t.Errorf("%s has %v, %v", dir, left, err)
				}
			}
		})
	}
}
