package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// A terminal shows how far a backup is, and nothing of it afterwards. A file gets nothing.
func TestProgressOn(t *testing.T) {
	var b bytes.Buffer
	if progress, done := progressOn(&b); progress != nil {
		t.Error("progress goes to something that is no terminal")
	} else if done(); b.Len() > 0 {
		t.Errorf("%q", &b)
	}
	master, terminal, err := testdaemon.Terminal()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer terminal.Close()
	progress, done := progressOn(terminal)
	if progress == nil {
		t.Fatal("no progress on a terminal")
	}
	progress(3 << 20)
	progress(4 << 20) // too early to be shown
	done()
	text := make([]byte, 100)
	got := ""
	for !strings.HasSuffix(got, "\033[K") {
		n, err := master.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		got += string(text[:n])
	}
	if got != "\r3.0 MB\r\033[K" {
		t.Errorf("%q", got)
	}
}

// Mistakes in the flags are named before anything is done.
func TestBackupFlags(t *testing.T) {
	for args, want := range map[string]string{
		"backup":     "backup takes one FILE or DIR",
		"backup a b": "backup takes one FILE or DIR",
		"restore":    "restore takes one FILE",
		"restore a --store postgres://u:secret@127.0.0.1/db": "--store-password-file",
		"restore a --store postgres://u@db.example/db":       "hostaddr",
		"restore a --store-password-file b":                  "which is missing",
		"serve --store postgres://u:secret@127.0.0.1/db":     "--store-password-file",
		"serve --store-ca b":                                 "which is missing",
		"restore a --state-dir=":                             "must not be empty",
	} {
		var out bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), nil, &out, &out); code != 2 || !strings.Contains(out.String(), want) || strings.Contains(out.String(), "secret") {
			t.Errorf("%s: %d: %s; want %q", args, code, &out, want)
		}
	}
}
