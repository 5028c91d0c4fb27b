package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/internal/message"
)

// readFile returns the options of serve with an operator's file.
func readFile(t *testing.T, path string) (*serveOptions, error) {
	t.Helper()
	o := newServeOptions()
	flags, settings := pflag.NewFlagSet("flags", pflag.ContinueOnError), pflag.NewFlagSet("settings", pflag.ContinueOnError)
	o.addServeFlags(flags)
	o.addServeSettings(settings)
	o.config = path
	if err := applySections(path, flags, settings, o.sections()); err != nil {
		return nil, err
	}
	return o, o.completeServe()
}

// The folders and roles of the operator's file reach the daemon. Credentials that are in the file
// itself are read again from it; what is wrong by then is named, and is no secret.
func TestOperatorFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serve.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const role = "arn:aws:iam::111122223333:role/reader"
	write("account-id: '111122223333'\nfolders: {code: /srv/functions/, zips: {path: /srv/zips}}\nroles: {reader: {access-key-id: one, secret-access-key: hushhush}}\n")
	o, err := readFile(t, path)
	if err != nil {
		t.Fatal(err)
	}
	var cfg daemon.ServeConfig
	o.addFile(&cfg)
	if !slices.Equal(cfg.Folders, []message.Folder{{Name: "code", Path: "/srv/functions"}, {Name: "zips", Path: "/srv/zips"}}) {
		t.Errorf("%+v", cfg.Folders)
	}
	if len(cfg.Roles) != 1 || cfg.Roles[0].ARN != role || cfg.Roles[0].First.AccessKeyID != "one" || !cfg.Worker.Roles {
		t.Fatalf("%+v", cfg.Roles)
	}
	write("roles: {other: {access-key-id: x, secret-access-key: hushhush}, reader: {access-key-id: two, secret-access-key: hushhush2, session-token: t}}\n")
	if c, err := cfg.Roles[0].Read(); err != nil || c != (message.Credentials{AccessKeyID: "two", SecretAccessKey: "hushhush2", SessionToken: "t"}) {
		t.Errorf("%v, %v", c, err)
	}
	for text, word := range map[string]string{
		"roles: {reader: {secret-access-key: hushhush}}": "role reader", "roles: {}": "no role reader", "roles: {reader: {}}": "put it back", "roles: [": "serve.yaml",
	} {
		write(text)
		if _, err := cfg.Roles[0].Read(); err == nil || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "hushhush") {
			t.Errorf("%s: %v, want %q", text, err, word)
		}
	}
	for text, word := range map[string]string{
		"folders: {code: srv}": "absolute", "folders: {code: [a]}": "mapping", "folders: {code: }": "absolute", "folders: {code: {where: /a}}": "where",
		"roles: {reader: {credentials: /a, access-key-id: b}}": "leave one of them out", "roles: {reader: {role: x}}": "credentials, ",
		"account-id: '111122223333'\nroles: {reader: {access-key-id: a, secret-access-key: b}, '" + role + "': {access-key-id: a, secret-access-key: b}}": "twice",
	} {
		write(text)
		if _, err := readFile(t, path); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v, want %q", text, err, word)
		}
	}
}
