package state

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"
	"time"
)

// Engine is an open database, and what is special to its kind.
type Engine struct {
	Name     string // of the database, as an error names it
	Warnings []string
	DB       *sql.DB
	Readers  int // how many views read at once

	// Texts of SQL.
	Parameter string // what begins the number of a parameter
	Bytes     string // the type of bytes
	Lock      string // what makes SELECT lock its rows against other daemons
	Begin     string // begins a transaction that writes
	BeginRead string // begins one that reads, and sees one state of the store
	HasTable  string // counts the tables with the name of its parameter

	// Timeout bounds a statement; 0 is no bound.
	Timeout time.Duration
	// Classify says what an error of the driver means.
	Classify func(error) Fault
	// Check looks for damage that only the engine can see; nil finds none.
	Check func(ctx context.Context, query func(q string) ([]string, error)) ([]string, error)
	// Marked is the number of the last commit that Mark was told of; 0 if there was none.
	// A database with fewer commits has lost some.
	Marked uint64
	// Mark keeps the number of a commit outside of the database; nil if nothing does. It
	// is called after the commit is on disk, and before it is acknowledged.
	Mark func(commit uint64) error
	// Close closes the database and releases its lock.
	Close func() error
}

// Fault is what an error of a database means.
type Fault int

// The faults.
const (
	FaultOther  Fault = iota
	FaultRetry        // another transaction was in the way: the same one may succeed
	FaultGone         // the connection is lost
	FaultSpace        // the disk is full; nothing was changed
	FaultDamage       // the database's files are damaged
	FaultDisk         // what a commit that fails with it has left on the disk is unknown
)

// errorf says what failed, and gives the error its kind.
func (e *Engine) errorf(err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	switch e.Classify(err) {
	case FaultSpace:
		return fmt.Errorf("%s: %w: %w: free space on the disk of %s", what, ErrNoSpace, err, e.Name)
	case FaultDamage:
		return fmt.Errorf("%s: %w: %w", what, ErrDamaged, err)
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

// session is a connection with its prepared statements. One goroutine uses it at a time.
type session struct {
	engine *Engine
	conn   *sql.Conn
	stmts  map[string]*sql.Stmt
}

func (e *Engine) session(ctx context.Context) (*session, error) {
	ctx, cancel := e.bounded(ctx)
	defer cancel()
	conn, err := e.DB.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &session{engine: e, conn: conn, stmts: map[string]*sql.Stmt{}}, nil
}

// close gives the connection up. A transaction that is open on it ends with it, so the
// connection is not used again: ErrBadConn makes the pool drop it.
func (s *session) close() {
	for _, stmt := range s.stmts {
		stmt.Close()
	}
	s.conn.Raw(func(any) error { return driver.ErrBadConn })
	s.conn.Close()
}

// bounded is ctx with the engine's timeout.
func (e *Engine) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if e.Timeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, e.Timeout)
}

func (s *session) prepared(ctx context.Context, q string) (*sql.Stmt, error) {
	if stmt := s.stmts[q]; stmt != nil {
		return stmt, nil
	}
	stmt, err := s.conn.PrepareContext(ctx, strings.ReplaceAll(q, "$", s.engine.Parameter))
	if err == nil {
		s.stmts[q] = stmt
	}
	return stmt, err
}

// run executes a statement, which is not interrupted: the context of a caller that goes
// away must not leave a transaction half done.
func (s *session) run(q string, args ...any) error {
	ctx, cancel := s.engine.bounded(context.Background())
	defer cancel()
	stmt, err := s.prepared(ctx, q)
	if err != nil {
		return err
	}
	_, err = stmt.ExecContext(ctx, args...)
	return err
}

// define executes a statement that changes the schema, and keeps none of it.
func (s *session) define(q string) error {
	ctx, cancel := s.engine.bounded(context.Background())
	defer cancel()
	_, err := s.conn.ExecContext(ctx, strings.ReplaceAll(q, "BYTES", s.engine.Bytes))
	return err
}

// each calls f for each row of a query. f's error ends it.
func (s *session) each(q string, args []any, f func(scan func(...any) error) error) error {
	ctx, cancel := s.engine.bounded(context.Background())
	defer cancel()
	stmt, err := s.prepared(ctx, q)
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// one scans the only row of a query into values and reports whether there was one.
func (s *session) one(q string, args []any, values ...any) (found bool, err error) {
	err = s.each(q, args, func(scan func(...any) error) error {
		found = true
		return scan(values...)
	})
	return found, err
}
