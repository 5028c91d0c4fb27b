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
	if err := f.sameStore(folder); err != nil {
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
	for _, w := range store.Warnings() {
		f.host.Log.Warn(w)
	}
	for _, d := range store.Damage() {
		f.host.Log.WithField("damage", fmt.Sprint(d)).Error("the store is damaged: what is damaged is not served, and nothing is changed; see 'sandboxd restore'")
	}
	return store, nil
}

// sameStore returns an error if the blobs in the folder belong to another store than the
// configured one, which would have them removed.
func (f *functions) sameStore(folder string) error {
	elsewhere := filepath.Join(folder, message.StoreElsewhere)
	has := func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	}
	switch {
	case f.host.Config.Database.URL == "" && has(elsewhere):
		return errors.New("the store of --state-dir is in a PostgreSQL database: give its --store, or choose another --state-dir")
	case f.host.Config.Database.URL == "":
		return nil
	case has(filepath.Join(folder, sqlite.Database)):
		return errors.New("--state-dir has a store of its own: leave --store out; or move the store to the database, by 'sandboxd backup' and 'sandboxd restore --store' to another --state-dir")
	case has(elsewhere):
		return nil
	}
	file, err := os.OpenFile(elsewhere, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Close(), state.SyncFolder(folder))
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
