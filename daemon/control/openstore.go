package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/postgres"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// openStore opens the store, which verifies itself. The blobs are beside its folder (package
// state/blob).
func (f *functions) openStore(ctx context.Context) (*state.Store, error) {
	folder := filepath.Join(f.host.Config.Folder, message.StoreFolder)
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	belongs, err := postgres.ReadFolder(folder)
	if err != nil {
		return nil, err
	}
	if err := f.sameEngine(folder, belongs); err != nil {
		return nil, err
	}
	open := func(ctx context.Context) (*state.Store, error) {
		return sqlite.Open(ctx, sqlite.Options{Folder: folder})
	}
	if db := f.host.Config.Database; db.URL != "" {
		options := postgres.Options{URL: db.URL, Password: db.Password, CA: db.CA, Folder: folder,
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return f.host.client.DialStore(ctx) }}
		open = func(ctx context.Context) (*state.Store, error) { return f.openDatabase(ctx, options) }
	}
	store, err := open(ctx)
	if err != nil {
		return nil, err
	}
	f.closers = append(f.closers, store.Close)
	if f.host.Config.Database.URL != "" {
		if err := sameStore(ctx, store, folder, belongs); err != nil {
			return nil, err
		}
	}
	for _, w := range store.Warnings() {
		f.host.Log.Warn(w)
	}
	for _, d := range store.Damage() {
		f.host.Log.WithField("damage", fmt.Sprint(d)).Error("the store is damaged: what is damaged is not served, and nothing is changed; see 'sandboxd restore'")
	}
	return store, nil
}

// sameEngine returns an error if the blobs beside the folder are those of a store of the other
// engine, which has the epoch belongs if it is in a database: a sweep would remove them.
func (f *functions) sameEngine(folder, belongs string) error {
	if f.host.Config.Database.URL == "" {
		if belongs != "" {
			return errors.New("the store of --state-dir is in a PostgreSQL database: give its --store, or choose another --state-dir")
		}
		return nil
	}
	_, err := os.Lstat(filepath.Join(folder, sqlite.Database))
	if err == nil {
		return errors.New("--state-dir has a store of its own: leave --store out; or move the store to the database, by 'sandboxd backup' and 'sandboxd restore --store' to another --state-dir")
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sameStore returns an error if the store in a database is not the one that the folder belongs
// to: its blobs are elsewhere. A new folder comes to belong to a store in which nothing is yet.
func sameStore(ctx context.Context, store *state.Store, folder, belongs string) error {
	const cure = "give the --store and the --state-dir that belong together, or restore a backup to a new database and a new folder"
	switch belongs {
	case store.Epoch():
		return nil
	case "":
	default:
		return errors.New("the database of --store has another store than --state-dir belongs to: " + cure)
	}
	return store.View(ctx, func(r *state.Reader) error {
		switch pairs, err := r.List("", "", 1); {
		case err != nil:
			return err
		case len(pairs) > 0:
			return errors.New("the database of --store has functions or keys whose code is in another --state-dir: " + cure)
		}
		return postgres.WriteFolder(folder, store.Epoch())
	})
}

// Pauses between attempts to reach a database.
const (
	firstAttempt = 100 * time.Millisecond
	lastAttempt  = 5 * time.Second
)

// openDatabase opens the store in a database. It waits for a server that cannot be reached yet:
// both may have been started at once. Clients are told that this server is starting.
func (f *functions) openDatabase(ctx context.Context, o postgres.Options) (*state.Store, error) {
	for pause := firstAttempt; ; pause = min(2*pause, lastAttempt) {
		store, err := postgres.Open(ctx, o)
		if err == nil || !postgres.IsUnreachable(err) || ctx.Err() != nil {
			return store, err
		}
		f.host.Log.WithError(err).Warnf("the database of --store cannot be reached; trying again in %v", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}
