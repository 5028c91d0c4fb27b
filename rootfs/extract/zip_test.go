package extract

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// TestManyEntryListIsBounded: a list of entries that would fill the daemon's memory
// is refused before it is read.
func TestManyEntryListIsBounded(t *testing.T) {
	files := make([]ziptest.File, 8200)
	for i := range files {
		files[i].Name = fmt.Sprintf("%05d%s", i, strings.Repeat("/x", 2040))
	}
	data := ziptest.Make(t, files...)
	_, err := planZip("big.zip", bytes.NewReader(data), int64(len(data)), Limits{}.WithDefaults())
	if !errors.Is(err, invalid.ErrTooLarge) || !strings.Contains(err.Error(), "list of entries") {
		t.Errorf("error %v, want invalid.ErrTooLarge for the list", err)
	}
}

// TestImpliedDirectoriesCount: directories that no entry lists count as entries.
func TestImpliedDirectoriesCount(t *testing.T) {
	data := ziptest.Make(t, ziptest.File{Name: "a/b/c/d"}, ziptest.File{Name: "e/f/g/h"})
	_, err := planZip("x.zip", bytes.NewReader(data), int64(len(data)), Limits{Entries: 7}.WithDefaults())
	if !errors.Is(err, invalid.ErrTooLarge) {
		t.Errorf("8 files and directories pass a limit of 7: %v", err)
	}
	if _, err := planZip("x.zip", bytes.NewReader(data), int64(len(data)), Limits{Entries: 8}.WithDefaults()); err != nil {
		t.Errorf("8 files and directories do not pass a limit of 8: %v", err)
	}
}
