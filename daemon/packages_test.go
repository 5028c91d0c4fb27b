package daemon

import (
	"archive/zip"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// zipped is a zip of a function in shell.
func zipped(t *testing.T) string {
	t.Helper()
	var data bytes.Buffer
	w := zip.NewWriter(&data)
	header := &zip.FileHeader{Name: "bootstrap"}
	header.SetMode(0o755)
	entry, err := w.CreateHeader(header)
	if err == nil {
		_, err = io.WriteString(entry, "#!/bin/sh\n")
	}
	if err == nil {
		err = w.Close()
	}
	name := filepath.Join(t.TempDir(), "function.zip")
	if err == nil {
		err = os.WriteFile(name, data.Bytes(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// A revision keeps its package and its image of /tmp in use until its last sandbox is gone.
// One that cannot be made keeps nothing in use.
func TestRevisionKeepsItsEntries(t *testing.T) {
	dir := t.TempDir()
	d := &Daemon{log: logrus.New(), epoch: 5}
	d.log.SetOutput(t.Output())
	d.cfg.Networks = []Network{{Name: "none", Network: isolation.Network{Mode: isolation.NetworkNone}}}
	var err error
	if d.instance, err = instance.Acquire(filepath.Join(dir, "run")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.instance.Close(); err != nil {
			t.Error(err)
		}
	})
	if d.packages, err = store.Open(PackagesDir(dir)); err != nil {
		t.Fatal(err)
	}
	d.maker = &maker{log: d.log, revisions: newRevisions(d.cfg.Networks, func(shape) func() { return func() {} }, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})}
	wantInUse := func(when string, want int) {
		t.Helper()
		if r, err := store.Plan(t.Context(), PackagesDir(dir), store.Retention{}); err != nil || len(r.InUse) != want {
			t.Errorf("%s: %+v are in use, %v; want %d", when, r.InUse, err, want)
		}
	}
	fn := Function{Settings: function.Defaults(), Source: Source{Code: zipped(t), Base: "host"}}
	rev, err := d.Prepare(t.Context(), fn)
	if err != nil {
		t.Fatal(err)
	}
	wantInUse("a revision", 2)
	sandbox, err := d.maker.revisions.acquire(rev.ID.Number)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Retire(rev.ID); err != nil {
		t.Fatal(err)
	}
	wantInUse("one that was retired and has a sandbox", 2)
	d.maker.revisions.release(sandbox)
	wantInUse("no revision", 0)

	bad := fn
	bad.Settings.Network = "other"
	if _, err := d.Prepare(t.Context(), bad); err == nil {
		t.Error("there is a network that is not there")
	}
	bad = fn
	bad.Settings.EphemeralMB = 1 << 30
	if _, err := d.Prepare(t.Context(), bad); err == nil {
		t.Error("there is a /tmp of 1 PiB")
	}
	wantInUse("revisions that could not be made", 0)
}

// A variable of an image that its function does not get is warned of by name, without its value.
func TestDroppedVariables(t *testing.T) {
	got := droppedVariables("img", map[string]string{"a.b": "1", "_JAVA_OPTIONS": "1", "LAMBDA_TASK_ROOT": "/var/task", "AWS_REGION": "secret", "_HANDLER": "secret", "N": "secret\x00"})
	if len(got) != 3 || !strings.HasPrefix(got[0], "img: ") || !strings.Contains(got[0], "AWS_REGION") || strings.Contains(strings.Join(got, ""), "secret") {
		t.Errorf("%q", got)
	}
}

// The progress of an extraction that takes long is logged now and then.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := logrus.New()
		log.SetOutput(&out)
		report := (&Daemon{log: log}).progress()
		for i := range int64(100) { // ten seconds
			report("app.zip", i<<20, 100<<20)
			time.Sleep(100 * time.Millisecond)
		}
		report("layer.zip", 5<<20, 0)
		if got := strings.Count(out.String(), "\n"); got != 2 || !strings.Contains(out.String(), "extracting app.zip: 20 of 100 MiB") ||
			!strings.Contains(out.String(), "extracting app.zip: 70 of 100 MiB") {
			t.Errorf("%d lines:\n%s", got, out.String())
		}
		time.Sleep(progressEvery)
		report("layer.zip", 5<<20, 0)
		if !strings.Contains(out.String(), "extracting layer.zip: 5 MiB") {
			t.Errorf("%s", out.String())
		}
	})
}
