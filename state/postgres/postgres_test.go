package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/postgres/pgtest"
	"github.com/sandboxd/sandboxd/state/statetest"
)

// database is a place of stores by PostgreSQL.
type database struct {
	server *pgtest.Server
	url    string
}

func (d database) Other(t testing.TB) statetest.Place {
	return database{d.server, d.server.Database(t)}
}

func (d database) Open(t testing.TB) *state.Store {
	t.Helper()
	s, err := Open(context.Background(), Options{URL: d.url, Folder: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (d database) Engine(t testing.TB) *state.Engine {
	t.Helper()
	e, err := Engine(context.Background(), Options{URL: d.url})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (d database) Exec(t testing.TB, statement string) {
	t.Helper()
	db, err := sql.Open("pgx", d.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func (d database) Bytes(value string) string { return fmt.Sprintf(`'\x%x'::bytea`, value) }

func TestStore(t *testing.T) {
	server := pgtest.Start(t)
	statetest.Run(t, func(t testing.TB) statetest.Place { return database{server, server.Database(t)} })
}
