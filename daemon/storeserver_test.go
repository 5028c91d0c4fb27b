package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The password is in a file that is nobody else's, and the address names where root connects.
func TestNewStoreServer(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const folder = "postgres://u@/db?host=/run/postgresql"
	for _, c := range []struct{ url, password, ca, want string }{
		{folder, file("ok", "open-sesame\n", 0o600), "", ""},
		{folder, file("open", "open-sesame", 0o644), "", "chmod it to 0600"},
		{folder, file("long", strings.Repeat("x", maxPassword+1), 0o600), "", "too long"},
		{folder, dir, "", "no regular file"},
		{folder, filepath.Join(dir, "none"), "", "no such file"},
		{"postgres://u@127.0.0.1/db", "", filepath.Join(dir, "none"), "--store-ca: "},
		{"postgres://u@db.example/db", "", "", "hostaddr"},
		{"postgres://u:open-sesame@127.0.0.1/db", "", "", "--store-password-file"},
	} {
		s, err := NewStoreServer(c.url, c.password, c.ca)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "sesame") {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		db, err := s.database()
		if err != nil || db.Password != "open-sesame" || db.URL != c.url {
			t.Errorf("%+v, %v", db, err)
		}
		file("ok", "another", 0o600)
		if db, err := s.database(); err != nil || db.Password != "another" {
			t.Errorf("after a change: %+v, %v", db, err)
		}
	}
}
