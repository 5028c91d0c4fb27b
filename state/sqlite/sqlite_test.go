package sqlite

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/statetest"
)

// folder is a place of stores by SQLite.
type folder string

func newFolder(t testing.TB) statetest.Place { return folder(t.TempDir()) }

func (f folder) Other(t testing.TB) statetest.Place { return newFolder(t) }

func (f folder) Open(t testing.TB) *state.Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Folder: string(f)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (f folder) Engine(t testing.TB) *state.Engine {
	t.Helper()
	e, err := Engine(t.Context(), Options{Folder: string(f)})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Exec runs in this process, which may have the store open: unix-excl shares its locks.
func (f folder) Exec(t testing.TB, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(string(f), Database)+"?vfs=unix-excl")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func (f folder) Bytes(value string) string { return fmt.Sprintf("x'%x'", value) }

func TestStore(t *testing.T) { statetest.Run(t, newFolder) }
