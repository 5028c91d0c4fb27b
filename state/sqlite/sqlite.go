// Package sqlite keeps a store in one folder of this host by SQLite (docs/decisions/0051).
//
// The folder has these files:
//
//	store.db      the database
//	store.db-wal  its write-ahead log, which is gone after Close
//	mark          how many commits were acknowledged: a log that was cut is told by it
//	lock          locked by the process that has the store open
//
// SQLite opens them by their paths, makes no other files, and needs no shared memory: the
// index of the log is in the process that has the store alone (the VFS unix-excl).
package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/state"
)

// Names of the files.
const (
	Database = "store.db"
	Log      = "store.db-wal"
	Mark     = "mark"
	Lock     = "lock"
)

// readers is how many views read at once.
const readers = 4

// Options of a store.
type Options struct {
	// Folder is the store's own. It must exist.
	Folder string
	// Progress is told of the verification at the start; nil is nobody.
	Progress func(state.Progress)
	// Synchronous is the pragma of this name; "" is FULL, and nothing else keeps what was
	// acknowledged when the power fails. Tests show that.
	Synchronous string
}

// Open opens the store in a folder, and makes it if there is none.
func Open(ctx context.Context, o Options) (*state.Store, error) {
	e, err := Engine(ctx, o)
	if err != nil {
		return nil, err
	}
	return state.Open(ctx, e, state.Options{Folder: o.Folder, Progress: o.Progress})
}

// Engine opens the database in a folder, without looking at the store in it. A folder that
// another process has open is a [state.ErrInUse].
func Engine(ctx context.Context, o Options) (*state.Engine, error) {
	path := filepath.Join(o.Folder, Database)
	e, err := open(ctx, o, path)
	if err != nil {
		return nil, fmt.Errorf("open the store %s: %w", path, err)
	}
	return e, nil
}

func open(ctx context.Context, o Options, path string) (_ *state.Engine, err error) {
	if o.Synchronous == "" {
		o.Synchronous = "FULL"
	}
	lock, err := takeLock(filepath.Join(o.Folder, Lock))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	mark, err := openMark(filepath.Join(o.Folder, Mark))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, mark.Close())
		}
	}()
	if err := notEmptied(path, mark.count); err != nil {
		return nil, err
	}
	// SQLite gives its files the mode of this one.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector{path: path, synchronous: o.Synchronous})
	// The first connection has its settings verified and stays open: with the last one
	// SQLite removes the log and gives up its lock.
	first, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(opened(err), db.Close())
	}
	if err := state.SyncFolder(o.Folder); err != nil { // the names of what was made
		return nil, errors.Join(err, first.Close(), db.Close())
	}
	return &state.Engine{
		Name:      path,
		DB:        db,
		Readers:   readers,
		Parameter: "?",
		Bytes:     "BLOB",
		Begin:     "BEGIN IMMEDIATE",
		BeginRead: "BEGIN",
		HasTable:  "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = $1",
		Classify:  classify,
		Check:     integrity,
		Marked:    mark.count,
		Mark:      mark.set,
		Tend:      (&tender{log: filepath.Join(o.Folder, Log), limit: maxLog}).tend,
		Close:     func() error { return errors.Join(first.Close(), db.Close(), mark.Close(), lock.Close()) },
	}, nil
}

// maxLog is the size of the log from which on it is emptied although views read it. SQLite
// begins the log anew by itself when all of it is in the database and nobody reads it, which
// may never come while views overlap.
const maxLog = 16 << 20

// tender keeps the log from growing.
type tender struct {
	log   string
	limit int64
}

// tend empties the log if it is large. New views then read the database alone, so that it
// has to wait only for those that have begun before. While a long one reads, as a backup
// does, it is tried again when the log has grown some more.
func (t *tender) tend(run func(string) error) {
	info, err := os.Stat(t.log)
	if err != nil || info.Size() < t.limit {
		return
	}
	// An error leaves the changes in the log, where they are as safe.
	_ = run("PRAGMA busy_timeout = 300")
	_ = run("PRAGMA wal_checkpoint(TRUNCATE)")
	_ = run("PRAGMA busy_timeout = 10000")
	t.limit = maxLog
	if info, err := os.Stat(t.log); err == nil && info.Size() >= maxLog {
		t.limit = info.Size() * 3 / 2
	}
}

// takeLock opens the file and locks it until it is closed. The lock is of the open file:
// the process may open and close it again elsewhere.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("%w by another sandboxd: end that one first, or choose another --state-dir", state.ErrInUse)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// notEmptied fails if a database that has had commits has no bytes. SQLite would take it
// for a new one, and remove its log.
func notEmptied(path string, commits uint64) error {
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if commits > 0 && (err != nil || info.Size() == 0) {
		return fmt.Errorf("%w: it is empty, and had %d changes: restore a backup", state.ErrDamaged, commits)
	}
	return nil
}

// connector opens connections with the settings that they must have.
type connector struct{ path, synchronous string }

func (c connector) Driver() driver.Driver { return &sqlite3.SQLiteDriver{} }

// settings are pragmas with what they must answer.
func (c connector) settings() [][2]string {
	levels := map[string]string{"OFF": "0", "NORMAL": "1", "FULL": "2"}
	return [][2]string{
		{"busy_timeout = 10000", "10000"},
		{"journal_mode = WAL", "wal"},
		{"synchronous = " + c.synchronous, levels[c.synchronous]},
		{"temp_store = MEMORY", "2"},                  // no file outside of the folder
		{"mmap_size = 0", "0"},                        // an error of the disk is an error, not a signal
		{"secure_delete = ON", "1"},                   // what is deleted cannot come back from a free page
		{"cell_size_check = ON", "1"},                 // damage is seen early
		{"trusted_schema = OFF", "0"},                 // no function runs because of what is in the file
		{"wal_autocheckpoint = 1000", "1000"},         // pages
		{"journal_size_limit = 67108864", "67108864"}, // of a log that a long view has kept
		{"cache_size = -4096", "-4096"},               // KiB a connection
	}
}

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	d := sqlite3.SQLiteDriver{ConnectHook: func(conn *sqlite3.SQLiteConn) error {
		for _, setting := range c.settings() {
			name, _, _ := strings.Cut(setting[0], " ")
			if _, err := conn.Exec("PRAGMA "+setting[0], nil); err != nil {
				return fmt.Errorf("set %s: %w", setting[0], err)
			}
			if got, err := ask(conn, "PRAGMA "+name); err != nil || got != setting[1] {
				return errors.Join(fmt.Errorf("set %s: SQLite has %q instead of %q", setting[0], got, setting[1]), err)
			}
		}
		return nil
	}}
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: c.path}).EscapedPath(), RawQuery: "vfs=unix-excl"}
	return d.Open(u.String())
}

// ask returns what a pragma answers.
func ask(conn *sqlite3.SQLiteConn, q string) (string, error) {
	rows, err := conn.Query(q, nil)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	value := make([]driver.Value, 1)
	if err := rows.Next(value); err != nil {
		return "", err
	}
	switch v := value[0].(type) {
	case int64:
		return strconv.FormatInt(v, 10), nil
	case []byte:
		return string(v), nil
	default:
		return fmt.Sprint(v), nil
	}
}

// opened gives the error of the first connection its kind.
func opened(err error) error {
	var e sqlite3.Error
	switch {
	case classify(err) == state.FaultDamage:
		return fmt.Errorf("%w: %w: restore a backup", state.ErrDamaged, err)
	case errors.As(err, &e) && (e.Code == sqlite3.ErrBusy || e.Code == sqlite3.ErrLocked):
		return fmt.Errorf("%w by another process: %w", state.ErrInUse, err)
	}
	return err
}

// classify says what an error of SQLite means.
func classify(err error) state.Fault {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return state.FaultOther
	}
	switch e.Code {
	case sqlite3.ErrFull:
		return state.FaultSpace
	case sqlite3.ErrCorrupt, sqlite3.ErrNotADB:
		return state.FaultDamage
	case sqlite3.ErrError:
		// The statements are always the same: one that fails does not find the tables that
		// were made, or a header that was written.
		return state.FaultDamage
	case sqlite3.ErrBusy, sqlite3.ErrLocked:
		return state.FaultRetry
	case sqlite3.ErrIoErr:
		if e.ExtendedCode == sqlite3.ErrIoErrShortRead {
			return state.FaultDamage // the file ends too early
		}
		return state.FaultDisk
	}
	return state.FaultOther
}

// integrity has SQLite look at its pages and indexes.
func integrity(_ context.Context, query func(string) ([]string, error)) ([]string, error) {
	list, err := query("PRAGMA integrity_check(20)")
	if err != nil || len(list) == 1 && list[0] == "ok" {
		return nil, err
	}
	return list, nil
}
