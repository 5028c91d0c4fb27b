package main

import (
	"archive/zip"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/daemon/admin"
)

// A zip has what is in the folder, with modes and links, and is the same each time.
func TestZipFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "lib", "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bootstrap"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "lib", "link")); err != nil {
		t.Fatal(err)
	}
	text := func() string {
		f, err := zipFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := text()
	if first != text() {
		t.Error("the second zip differs")
	}
	z, err := zip.NewReader(strings.NewReader(first), int64(len(first)))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]fs.FileMode{}
	for _, f := range z.File {
		got[f.Name] = f.Mode()
		if f.Name == "lib/link" {
			r, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			if target, err := io.ReadAll(r); err != nil || string(target) != "/etc/shadow" {
				t.Errorf("the link has %q, %v", target, err)
			}
		}
	}
	if len(got) != 4 || got["bootstrap"] != 0o755 || got["lib/link"].Type() != fs.ModeSymlink || !got["lib/empty/"].IsDir() {
		t.Errorf("%v", got)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := zipFolder(dir); err == nil || !strings.Contains(err.Error(), "pipe is neither a file, a folder nor a link") {
		t.Errorf("a pipe: %v", err)
	}
}

func TestDeployWords(t *testing.T) {
	t.Setenv("PASSED", "on")
	if vars, err := deployEnv([]string{"A=b=c", "PASSED", "EMPTY="}); err != nil || len(vars) != 3 || vars["A"] != "b=c" || vars["PASSED"] != "on" {
		t.Errorf("%v, %v", vars, err)
	}
	if _, err := deployEnv([]string{"NOT_THERE_AT_ALL"}); err == nil {
		t.Error("a variable that is not there")
	}
	if line := invokeCommand(admin.Endpoint{URL: "http://h:1", Unsigned: true}, "f"); line != "curl -d '{}' http://h:1/2015-03-31/functions/f/invocations" {
		t.Error(line)
	}
	if got, want := printableLine("tab\tä\x1b[31m\x00"), "tab\tä?[31m?"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
