package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// formats make the format of the store: the first one its first format of nothing, each
// further one the next format of the one before. A release adds to the end and changes
// nothing that a release has had.
var formats = []func(*session) error{format1}

// format1 makes the tables of the first format. BYTES stands for the engine's type.
func format1(s *session) error {
	for _, statement := range []string{
		// What the store says of itself: its format, its epoch, the tally. A table of
		// this form is in all formats.
		"CREATE TABLE sandboxd_meta (name BYTES NOT NULL PRIMARY KEY, value BYTES NOT NULL, sum BYTES NOT NULL)",
		"CREATE TABLE sandboxd_keys (key BYTES NOT NULL PRIMARY KEY, value BYTES NOT NULL, sum BYTES NOT NULL)",
		// A log has a head while it has records, or has had some.
		"CREATE TABLE sandboxd_heads (log BYTES NOT NULL PRIMARY KEY, first BIGINT NOT NULL, next BIGINT NOT NULL, sum BYTES NOT NULL)",
		"CREATE TABLE sandboxd_records (log BYTES NOT NULL, seq BIGINT NOT NULL, value BYTES NOT NULL, sum BYTES NOT NULL, PRIMARY KEY (log, seq))",
		// An entry with a token is leased until its time, others are free from then on.
		"CREATE TABLE sandboxd_queue (queue BYTES NOT NULL, id BIGINT NOT NULL, at BIGINT NOT NULL, leases BIGINT NOT NULL, token BYTES NOT NULL, " +
			"value BYTES NOT NULL, sum BYTES NOT NULL, PRIMARY KEY (queue, id))",
		"CREATE INDEX sandboxd_queue_at ON sandboxd_queue (queue, at, id)",
		"CREATE TABLE sandboxd_timers (name BYTES NOT NULL PRIMARY KEY, at BIGINT NOT NULL, value BYTES NOT NULL, sum BYTES NOT NULL)",
		"CREATE INDEX sandboxd_timers_at ON sandboxd_timers (at, name)",
	} {
		if err := s.define(statement); err != nil {
			return err
		}
	}
	return nil
}

// Names of the store's own facts, beside tallyName.
const (
	formatName = "format" // a decimal number
	epochName  = "epoch"
)

// prepare brings the database to the newest format and reads what the store says of itself.
func (s *Store) prepare(ctx context.Context, sess *session, o Options) error {
	exists, err := sess.exists()
	if err == nil && !exists {
		err = s.create(sess)
	}
	if err != nil {
		return err
	}
	format, err := s.format(sess)
	if err != nil {
		return err
	}
	if format < len(formats) && len(s.Damage()) == 0 {
		if err := s.migrate(ctx, sess, o, format); err != nil {
			return fmt.Errorf("bring it from format %d to %d: %w", format, len(formats), err)
		}
	}
	epoch, found, err := sess.fact(epochName, "")
	if err == nil && !found {
		err = &DamageError{"facts", epochName}
	}
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	s.noted(err)
	s.epoch = string(epoch)
	return s.complete(sess)
}

func (s *session) exists() (bool, error) {
	var n int64
	if _, err := s.one(s.engine.HasTable, []any{"sandboxd_meta"}, &n); err != nil {
		return false, s.engine.errorf(err, "look for tables")
	}
	return n > 0, nil
}

// create makes an empty store, unless the database should have one.
func (s *Store) create(sess *session) error {
	if n := s.engine.Marked; n > 0 {
		return fmt.Errorf("%w: it is empty, and had %d changes: restore a backup", ErrDamaged, n)
	}
	err := sess.transaction(func() error { return sess.empty(len(formats), random()) })
	if err == nil {
		return s.mark(1)
	}
	// Another daemon that starts at the same time may have been faster.
	if exists, _ := sess.exists(); exists {
		return nil
	}
	return s.engine.errorf(err, "make its tables")
}

// mark tells the witness of a commit.
func (s *Store) mark(commit uint64) error {
	if s.engine.Mark == nil {
		return nil
	}
	return s.engine.Mark(commit)
}

// empty makes an empty store of a format within a transaction.
func (s *session) empty(format int, epoch string) error {
	for _, next := range formats[:format] {
		if err := next(s); err != nil {
			return err
		}
	}
	if err := s.putFact(formatName, []byte(strconv.Itoa(format))); err != nil {
		return err
	}
	if err := s.putFact(epochName, []byte(epoch)); err != nil {
		return err
	}
	return s.putTally(&tally{commits: 1})
}

// transaction calls f within a transaction that writes.
func (s *session) transaction(f func() error) error {
	err := s.run(s.engine.Begin)
	if err != nil {
		return err
	}
	if err = f(); err == nil {
		err = s.run("COMMIT")
	}
	if err != nil {
		s.run("ROLLBACK") // fails if the database has done so
	}
	return err
}

// format reads the store's format. One that cannot be read is damage, and taken for ours.
func (s *Store) format(sess *session) (int, error) {
	b, found, err := sess.fact(formatName, "")
	format := len(formats)
	if err == nil {
		if format, err = strconv.Atoi(string(b)); err != nil || !found || format < 1 {
			err = &DamageError{"facts", formatName}
			format = len(formats)
		}
	}
	if errors.Is(err, ErrDamaged) {
		s.noted(err)
		return format, nil
	}
	if err == nil && format > len(formats) {
		err = fmt.Errorf("%w: %d, and this sandboxd knows formats up to %d: use a newer sandboxd, or restore a backup that an older one made",
			ErrNewer, format, len(formats))
	}
	return format, err
}

// migrate brings the store to the newest format in one transaction, after a backup.
func (s *Store) migrate(ctx context.Context, sess *session, o Options, format int) error {
	if damage, err := s.verify(ctx, sess, o.Progress); err != nil || len(damage) > 0 {
		return err // it stays as it is and is read-only
	}
	name := filepath.Join(o.Folder, fmt.Sprintf("before-format-%d.backup", len(formats)))
	if err := s.backupTo(ctx, sess, name, format); err != nil {
		return fmt.Errorf("back it up to %s: %w", name, err)
	}
	err := sess.transaction(func() error {
		if _, err := sess.tally(s.engine.Lock); err != nil {
			return err
		}
		// Another daemon may have done it meanwhile.
		if now, err := s.format(sess); err != nil || now >= len(formats) {
			return err
		}
		for _, next := range formats[format:] {
			if err := next(sess); err != nil {
				return err
			}
		}
		if err := sess.putFact(formatName, []byte(strconv.Itoa(len(formats)))); err != nil {
			return err
		}
		t, err := sess.tally("") // the steps change what they count
		if err != nil {
			return err
		}
		t.commits++
		if err := sess.putTally(t); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return s.engine.errorf(err, "change its tables")
	}
	return nil
}

// backupTo writes a backup of the rows to a file, which is whole whenever it has its name,
// and takes the place of an earlier one.
func (s *Store) backupTo(ctx context.Context, sess *session, name string, format int) error {
	partial := name + ".partial"
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = s.backup(ctx, sess, f, nil, format)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(partial, name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(partial))
	}
	return SyncFolder(filepath.Dir(name))
}

// SyncFolder makes the names in a folder durable.
func SyncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// complete says whether the database has all the commits that its witness knows of. If it
// has not, nothing in it can be trusted to be the newest.
func (s *Store) complete(sess *session) error {
	t, err := sess.tally("")
	if errors.Is(err, ErrDamaged) {
		s.noted(err)
		return nil
	} else if err != nil {
		return err
	}
	if t.commits < s.engine.Marked {
		return fmt.Errorf("%w: the last %d of %d changes are missing: restore a backup", ErrDamaged, s.engine.Marked-t.commits, s.engine.Marked)
	}
	return s.mark(t.commits)
}
