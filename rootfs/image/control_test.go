package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// untarByPath applies a layer as one writes it in an afternoon: by path, whatever the names.
func untarByPath(t *testing.T, data []byte, dir string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		hidden, whiteout := strings.CutPrefix(filepath.Base(path), ".wh.")
		switch {
		case whiteout:
			err = os.RemoveAll(filepath.Join(filepath.Dir(path), hidden))
		case h.Typeflag == tar.TypeSymlink:
			err = os.Symlink(h.Linkname, path)
		case h.Typeflag == tar.TypeLink:
			err = os.Link(filepath.Join(dir, h.Linkname), path)
		default:
			var body []byte
			if body, err = io.ReadAll(r); err == nil {
				err = errors.Join(os.WriteFile(path, body, 0o600), os.Chmod(path, h.FileInfo().Mode()))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The control of TestHostileLayers and TestLayers: the same kinds of layers do get out of
// an unpacker that trusts names.
func TestHostileLayersControl(t *testing.T) {
	for _, test := range []struct {
		name  string
		layer func(outside string) []byte
		seen  func(dir, outside string) error // nil: it got out
	}{
		{"parent", func(string) []byte { return tarOf(t, file("../outside/secret", "changed")) }, changed},
		{"absolute link", func(outside string) []byte { return tarOf(t, link("l", outside), file("l/secret", "changed")) }, changed},
		{"parent link", func(string) []byte { return tarOf(t, link("l", "../outside"), file("l/secret", "changed")) }, changed},
		{"hard link to the host", func(string) []byte { return tarOf(t, hard("a", "../outside/secret"), file("a", "changed")) }, changed},
		{"whiteout through a link", func(string) []byte { return tarOf(t, link("l", "../outside"), file("l/.wh.secret", "")) },
			func(_, outside string) error {
				if _, err := os.Lstat(filepath.Join(outside, "secret")); err == nil {
					return errors.New("the host's file is still there")
				}
				return nil
			}},
		{"set-id", func(string) []byte { return tarOf(t, fileMode("s", 0o4755, "")) },
			func(dir, _ string) error {
				info, err := os.Stat(filepath.Join(dir, "s"))
				if err == nil && info.Mode()&fs.ModeSetuid == 0 {
					err = errors.New("the bit is gone")
				}
				return err
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			parent := t.TempDir()
			dir, outside := filepath.Join(parent, "dir"), filepath.Join(parent, "outside")
			if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "secret"), []byte("host"), 0o600)); err != nil {
				t.Fatal(err)
			}
			untarByPath(t, test.layer(outside), dir)
			if err := test.seen(dir, outside); err != nil {
				t.Error(err)
			}
		})
	}
}

func changed(_, outside string) error {
	text, err := os.ReadFile(filepath.Join(outside, "secret"))
	if err == nil && string(text) != "changed" {
		err = errors.New("the host's file is as it was")
	}
	return err
}
