package rootfs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// archive makes the beginning of a locale archive with these names.
func archive(names ...string) []byte {
	const header, hashes = 14 * 4, 32 // the table of hashes does not matter here
	text := strings.Join(names, "\x00") + "\x00"
	var b bytes.Buffer
	_ = binary.Write(&b, binary.NativeEndian, []uint32{0xde020109, 1, header, 1, 8, header + hashes, uint32(len(text)), 4096, 0, 0, 0, 0, 0, 0})
	b.Write(make([]byte, hashes))
	b.WriteString(text)
	return b.Bytes()
}

// ENV-10: LANG is a locale that the base has.
func TestLocale(t *testing.T) {
	cut := archive("en_US.utf8")
	tooLong := archive("en_US.utf8")
	binary.NativeEndian.PutUint32(tooLong[6*4:], 1<<31)
	for name, tt := range map[string]struct {
		files map[string][]byte
		want  string
	}{
		"none":                 {nil, "C.UTF-8"},
		"a folder":             {map[string][]byte{"en_US.utf8/LC_CTYPE": {1}}, "en_US.UTF-8"},
		"a folder, other name": {map[string][]byte{"en_US.UTF-8/LC_CTYPE": {1}}, "en_US.UTF-8"},
		"another folder":       {map[string][]byte{"C.utf8/LC_CTYPE": {1}, "de_DE.utf8/LC_CTYPE": {1}}, "C.UTF-8"},
		"an archive":           {map[string][]byte{"locale-archive": archive("de_DE.utf8", "en_US.utf8", "ja_JP.utf8")}, "en_US.UTF-8"},
		"first in an archive":  {map[string][]byte{"locale-archive": archive("en_US.utf8")}, "en_US.UTF-8"},
		"others in an archive": {map[string][]byte{"locale-archive": archive("en_US", "en_US.utf8x", "xen_US.utf8")}, "C.UTF-8"},
		"an archive cut short": {map[string][]byte{"locale-archive": cut[:len(cut)-3]}, "C.UTF-8"},
		"an archive that lies": {map[string][]byte{"locale-archive": tooLong}, "C.UTF-8"},
		"no archive":           {map[string][]byte{"locale-archive": []byte("\x00en_US.utf8\x00")}, "C.UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			for file, content := range tt.files {
				path := filepath.Join(base, localeDir, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, content, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			tree, err := Base(t.Context(), BaseOptions{Base: base, Scratch: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			v, err := newView(tree)
			if err != nil {
				t.Fatal(err)
			}
			defer v.close()
			if got, err := findLocale(v); err != nil || got != tt.want {
				t.Errorf("%q, %v, want %q", got, err, tt.want)
			}
		})
	}
}
