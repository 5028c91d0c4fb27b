package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name, text, key string
		want            uint64
		fails           bool
	}{
		{"one number", "4096\n", "", 4096, false},
		{"no line end", "0", "", 0, false},
		{"a key", "usage_usec 12\nuser_usec 7\n", "user_usec", 7, false},
		{"a key that is not there", "usage_usec 12\n", "user_usec", 0, true},
		{"a longer key", "oom_kill_disable 1\noom_kill 3\n", "oom_kill", 3, false},
		{"no number", "max\n", "", 0, true},
		{"nothing", "", "", 0, true},
		{"a number that the buffer cuts", strings.Repeat("x 1\n", 509) + "key 1234567890\n", "key", 0, true}, // of 2048 bytes, 12 are left
		{"a line before it", "key 12\n" + strings.Repeat("x 1\n", 1000), "key", 12, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for range 2 { // always from its beginning
				if got, err := read(f, tt.key); got != tt.want || (err != nil) != tt.fails {
					t.Errorf("%d, %v", got, err)
				}
			}
			f.Close()
			if _, err := read(f, tt.key); err == nil {
				t.Error("a closed file was read")
			}
		})
	}
}
