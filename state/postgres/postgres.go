// Package postgres keeps a store in a PostgreSQL database, which several daemons may share
// (docs/decisions/0051).
package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/sandboxd/sandboxd/internal/storeurl"
	"github.com/sandboxd/sandboxd/state"
)

// Options of a store.
type Options struct {
	// URL names the database, as package storeurl has it. A connection to a host is by TLS,
	// with the host's certificate verified, unless sslmode is disable. It has no password.
	URL string
	// Password is sent if the server wants one.
	Password string
	// CA are PEM certificates that the server's certificate is verified by; none stands
	// for those of the system.
	CA []byte
	// Dial opens connections to the server; nil is the standard library's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Folder is where a backup is written before an older store is migrated.
	Folder string
	// Progress is told of the verification at the start; nil is nobody.
	Progress func(state.Progress)
}

// readers is how many views read at once.
const readers = 4

// timeout bounds a statement, and how long the server keeps a transaction whose daemon
// says nothing: until then nobody else can write.
const timeout = 30 * time.Second

// connectTime is how long a new connection may take, with all that is said before the first
// statement.
const connectTime = 15 * time.Second

// Open opens the store in a database, and makes it if there is none.
func Open(ctx context.Context, o Options) (*state.Store, error) {
	e, err := Engine(ctx, o)
	if err != nil {
		return nil, err
	}
	return state.Open(ctx, e, state.Options{Folder: o.Folder, Progress: o.Progress})
}

// Engine opens the database, without looking at the store in it.
func Engine(ctx context.Context, o Options) (*state.Engine, error) {
	config, err := o.config()
	if err != nil {
		return nil, err
	}
	db := stdlib.OpenDB(*config)
	name := fmt.Sprintf("the database %s of PostgreSQL at %s", config.Database, config.Host)
	warnings, err := check(ctx, db)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", name, err), db.Close())
	}
	return &state.Engine{
		Name:      name,
		Warnings:  warnings,
		DB:        db,
		Readers:   readers,
		Parameter: "$",
		Bytes:     "BYTEA",
		Lock:      "FOR UPDATE",
		// Who writes holds the lock of one row, so each statement sees what others have
		// committed, and nobody else's change can come between.
		Begin:     "BEGIN ISOLATION LEVEL READ COMMITTED",
		BeginRead: "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
		HasTable:  "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = $1",
		Timeout:   timeout,
		Classify:  classify,
		Close:     db.Close,
	}, nil
}

// config makes the driver's settings of the URL. All come from it and the other options,
// and the driver opens no files.
func (o Options) config() (*pgx.ConnConfig, error) {
	u, err := storeurl.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", state.ErrInvalid, err)
	}
	plain := url.URL{Scheme: "postgres", User: url.User(u.User), Path: "/" + u.Database,
		RawQuery: url.Values{"host": {u.Host}, "port": {u.Port}, "sslmode": {"disable"}}.Encode()} // TLS is decided here
	config, err := pgx.ParseConfig(plain.String())
	if err != nil {
		return nil, fmt.Errorf("%w: the store's address: %w", state.ErrInvalid, err)
	}
	config.Password = o.Password
	config.Fallbacks = nil
	config.ConnectTimeout = connectTime
	if config.TLSConfig, err = o.tls(u); err != nil {
		return nil, err
	}
	config.RuntimeParams = map[string]string{
		"application_name":                    "sandboxd",
		"synchronous_commit":                  "on",
		"idle_in_transaction_session_timeout": fmt.Sprint(timeout.Milliseconds()),
	}
	if o.Dial != nil {
		config.DialFunc = o.Dial
	}
	if o.Dial != nil || u.HostAddr.IsValid() {
		config.LookupFunc = func(_ context.Context, host string) ([]string, error) {
			if u.HostAddr.IsValid() {
				host = u.HostAddr.String()
			}
			return []string{host}, nil
		}
	}
	return config, nil
}

func (o Options) tls(u *storeurl.URL) (*tls.Config, error) {
	if u.IsFolder() || u.Plain {
		return nil, nil
	}
	config := &tls.Config{ServerName: u.Host, MinVersion: tls.VersionTLS12}
	if len(o.CA) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(o.CA) {
			return nil, fmt.Errorf("%w: the store's certificates have no PEM certificate", state.ErrInvalid)
		}
	}
	return config, nil
}

// IsUnreachable reports whether err says that the server could not be reached, or is about to
// start or to stop: it may be there in a moment. A server that is not who it should be is not
// such a one.
func IsUnreachable(err error) bool {
	var other *tls.CertificateVerificationError
	return err != nil && classify(err) == state.FaultGone && !errors.As(err, &other)
}

// check asks the server whether it keeps what it acknowledges.
func check(ctx context.Context, db *sql.DB) (warnings []string, err error) {
	for _, s := range []struct{ name, want, cure string }{
		{"fsync", "on", "set it to on: without it the server loses what it acknowledged when the power fails"},
		{"full_page_writes", "on", "set it to on: without it the server's files break when the power fails"},
		{"synchronous_commit", "on", "let the user sandboxd connects as set it"},
		{"transaction_read_only", "off", "connect to the primary server"},
	} {
		var got string
		if err := db.QueryRowContext(ctx, "SHOW "+s.name).Scan(&got); err != nil {
			return nil, err
		}
		if got != s.want {
			return nil, fmt.Errorf("the server has %s = %s: %s", s.name, got, s.cure)
		}
	}
	var checksums string
	if err := db.QueryRowContext(ctx, "SHOW data_checksums").Scan(&checksums); err != nil {
		return nil, err
	}
	if checksums != "on" {
		warnings = append(warnings, "the PostgreSQL server has no data checksums, so that it notices less damage of its files: pg_checksums --enable adds them")
	}
	return warnings, nil
}

// classify says what an error of the driver means.
func classify(err error) state.Fault {
	var server *pgconn.PgError
	var connect *pgconn.ConnectError
	var network net.Error
	switch {
	case err == nil:
		return state.FaultOther
	case errors.As(err, &server):
		return classifyCode(server.Code)
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.As(err, &connect), errors.As(err, &network), pgconn.SafeToRetry(err), pgconn.Timeout(err):
		return state.FaultGone
	}
	return state.FaultOther
}

// classifyCode is about the codes of PostgreSQL, appendix A of its manual.
func classifyCode(code string) state.Fault {
	switch code {
	case "40001", "40P01": // serialization failure, deadlock
		return state.FaultRetry
	case "53100": // disk full
		return state.FaultSpace
	case "XX001", "XX002": // data corrupted, index corrupted
		return state.FaultDamage
	case "57P01", "57P02", "57P03", "25P03": // shutdown, crash, starting up, idle too long
		return state.FaultGone
	}
	if strings.HasPrefix(code, "08") { // connections
		return state.FaultGone
	}
	return state.FaultOther
}
