package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sandboxd/sandboxd/internal/message"
)

// Root opens files by numbers, and no others. What the operator does not allow any more is
// removed at the start.
func TestSegments(t *testing.T) {
	state := t.TempDir()
	s, err := openSegments(state, message.LogConfig{Segments: 3})
	if err != nil {
		t.Fatal(err)
	}
	for _, number := range []uint64{0, 4, 1 << 63, ^uint64(0)} {
		if f, err := s.open(number, true); err == nil {
			t.Errorf("%d is %s", number, f.Name())
		}
	}
	if _, err := s.open(2, false); !os.IsNotExist(err) {
		t.Errorf("one that does not exist: %v", err)
	}
	for _, number := range []uint64{1, 3} {
		f, err := s.open(number, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("old"); err != nil {
			t.Error(err)
		}
		f.Close()
	}
	f, err := s.open(1, true)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != 0 || info.Mode() != 0o600 {
		t.Errorf("a fresh one: %v, %v", info, err)
	}
	f.Close()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(state, logsName, "2")); err != nil {
		t.Fatal(err)
	}
	if f, err := s.open(2, true); err == nil {
		t.Errorf("a link was followed to %s", f.Name())
	}
	if cfg, err := s.config(); err != nil || !slices.Equal(cfg.Existing, []int{1, 2, 3}) {
		t.Errorf("%+v, %v", cfg, err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if s, err = openSegments(state, message.LogConfig{Segments: 1}); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if list, err := s.numbers(); err != nil || !slices.Equal(list, []int{1}) {
		t.Errorf("%v are left, %v", list, err)
	}
	if info, err := os.Stat(filepath.Join(state, logsName)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
}
