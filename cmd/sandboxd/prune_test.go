package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// pruneTest is a state folder with an old package, one that was used just now, and one in
// use, of an image whose name would move the cursor.
func pruneTest(t *testing.T) (dir string, old, recent, used *store.Ref) {
	t.Helper()
	dir = t.TempDir()
	packages, err := store.Open(daemon.PackagesDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	add := func(kind store.Kind, from string) *store.Ref {
		ref, err := packages.AddTree(t.Context(), from, store.Origin{Kind: kind, From: from}, func(root *os.Root) (int64, error) {
			return 1 << 20, root.WriteFile("file", make([]byte, 1<<20), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	old, recent, used = add(store.KindZip, "old.zip"), add(store.KindTmp, "/tmp of 512.0 MiB"), add(store.KindImage, "registry/app:\x1b[2J")
	if err := errors.Join(old.Close(), recent.Close()); err != nil {
		t.Fatal(err)
	}
	yesterday := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(filepath.Dir(old.Dir), yesterday, yesterday); err != nil {
		t.Fatal(err)
	}
	return dir, old, recent, used
}

func wantDirs(t *testing.T, want map[*store.Ref]bool) {
	t.Helper()
	for ref, there := range want {
		if _, err := os.Stat(ref.Dir); (err == nil) != there {
			t.Errorf("%s: %v, want it there: %v", ref.Dir, err, there)
		}
	}
}

func TestPrune(t *testing.T) {
	dir, old, recent, used := pruneTest(t)
	prune := func(o pruneOptions) string {
		t.Helper()
		o.stateDir = dir
		var out bytes.Buffer
		if err := o.prune(t.Context(), &out, true); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	wantLines := func(got string, want ...string) {
		t.Helper()
		lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
		for i, w := range want {
			if i >= len(lines) || !regexp.MustCompile(w).MatchString(lines[i]) {
				t.Errorf("line %d does not match %s:\n%s", i, w, got)
			}
		}
		if len(lines) != len(want) {
			t.Errorf("%d lines, want %d:\n%s", len(lines), len(want), got)
		}
	}
	const head = `^ +KIND +DIGEST +MADE FROM +SIZE +LAST USED$`
	oldLine := ` +zip +` + old.Digest[:12] + ` +old\.zip +1\.0 MB +24h0m\d+s ago$`
	recentLine := ` +tmp +` + recent.Digest[:12] + ` +/tmp of 512\.0 MiB +1\.0 MB +\d+s ago$`
	usedLine := `^in use +image +` + used.Digest[:12] + ` +registry/app:\?\[2J +1\.0 MB +now$`

	wantLines(prune(pruneOptions{dryRun: true}), head, "^would be removed"+oldLine, "^would be removed"+recentLine, usedLine,
		`^2\.0 MB would be freed; 1\.0 MB in use, 0\.0 MB unused stay$`)
	wantDirs(t, map[*store.Ref]bool{old: true, recent: true, used: true})
	wantLines(prune(pruneOptions{olderThan: time.Hour}), head, "^removed"+oldLine, "^stays"+recentLine, usedLine,
		`^1\.0 MB freed; 1\.0 MB in use, 1\.0 MB unused stay$`)
	wantDirs(t, map[*store.Ref]bool{old: false, recent: true, used: true})

	var got pruned
	if err := json.Unmarshal([]byte(prune(pruneOptions{format: "json", all: true})), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Removed) != 1 || len(got.InUse) != 1 || got.Unused == nil || len(got.Unused) != 0 || got.DryRun || got.FreedBytes != got.Removed[0].Bytes {
		t.Errorf("%+v", got)
	}
	if it := got.InUse[0]; it.Kind != "image" || it.From != "registry/app:?[2J" || it.Digest != used.Digest || it.Bytes < 1<<20 || time.Since(it.LastUsed) > time.Hour {
		t.Errorf("%+v", it)
	}
	wantDirs(t, map[*store.Ref]bool{old: false, recent: false, used: true})

	if err := used.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(used.Dir), "entry.json"), nil, 0o600); err != nil { // damaged
		t.Fatal(err)
	}
	wantLines(prune(pruneOptions{}), head, `^removed +unknown +`+used.Digest[:12]+` +- +1\.0 MB`, `^1\.0 MB freed`)
	wantLines(prune(pruneOptions{}), `^0\.0 MB freed; 0\.0 MB in use, 0\.0 MB unused stay$`)
}

// A folder that was misspelled is an error, the usual one may not be there yet; no way makes
// one.
func TestPruneNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	o := pruneOptions{stateDir: dir}
	var out bytes.Buffer
	if err := o.prune(t.Context(), &out, true); err == nil || !strings.Contains(err.Error(), "--state-dir: stat "+dir) {
		t.Errorf("%v", err)
	}
	if err := o.prune(t.Context(), &out, false); err != nil || !strings.HasPrefix(out.String(), "0.0 MB freed") {
		t.Errorf("%v: %s", err, out.String())
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder: %v", err)
	}
}

// What cannot be removed is an error, after all that has been done was said.
func TestPruneLeftover(t *testing.T) {
	dir, _, _, _ := pruneTest(t)
	if err := os.WriteFile(filepath.Join(daemon.PackagesDir(dir), "staging", "no-stage"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(daemon.PackagesDir(dir), "staging", "gone-1")
	if err := os.MkdirAll(filepath.Join(dead, "tree"), 0o700); err != nil {
		t.Fatal(err)
	}
	o := pruneOptions{stateDir: dir}
	var out bytes.Buffer
	err := o.prune(t.Context(), &out, true)
	if err == nil || !strings.Contains(err.Error(), "no-stage") || strings.Count(err.Error(), "no-stage") != 1 {
		t.Errorf("%v", err)
	}
	if !strings.Contains(out.String(), "leftovers of killed processes that were removed: 1\n2.0 MB freed") {
		t.Errorf("%s", out.String())
	}
	if _, err := os.Stat(dead); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
