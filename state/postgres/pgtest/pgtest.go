// Package pgtest starts PostgreSQL servers of the tests' own.
package pgtest

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
)

// Server is a PostgreSQL server with a folder and a socket of its own and no TCP. It has
// data checksums.
type Server struct {
	Folder string // where the socket is
	bin    string
	cred   *syscall.Credential // of whom it runs as; nil is the caller
	names  atomic.Int64
}

// Start starts a server, which ends with the test. Debian's package postgresql must be
// installed. As root it runs as the user postgres, since it refuses to be root.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{bin: programs(t)}
	dir, err := os.MkdirTemp("", "sandboxd-pg-") // t.TempDir is too long for a socket, and closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.Folder = dir
	if os.Geteuid() == 0 {
		s.cred = postgres(t)
		if err := os.Chown(dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	s.run(t, "initdb", "--pgdata", s.data(), "--data-checksums", "--auth", "trust", "--username", "sandboxd", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	s.Up(t)
	t.Cleanup(func() { s.Down(t) })
	return s
}

// Up starts the server, which was Down, and waits until it accepts connections. Settings are
// such as fsync=off.
func (s *Server) Up(t testing.TB, settings ...string) {
	t.Helper()
	options := fmt.Sprintf("-c listen_addresses='' -c unix_socket_directories='%s' -c shared_buffers=16MB -c max_connections=60", s.Folder)
	for _, setting := range settings {
		options += " -c " + setting
	}
	s.run(t, "pg_ctl", "start", "--pgdata", s.data(), "--log", filepath.Join(s.Folder, "log"), "--wait", "--silent",
		"--options", options)
}

// Down ends the server at once, as a crash does. It need not be up.
func (s *Server) Down(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(s.data(), "postmaster.pid")); err == nil {
		s.run(t, "pg_ctl", "stop", "--pgdata", s.data(), "--mode", "immediate", "--wait", "--silent")
	}
}

// Database makes an empty place for a store and returns its URL. It is a schema of a user
// of its own, which takes less time than a database.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test%d", s.names.Add(1))
	s.psql(t, fmt.Sprintf("CREATE ROLE %[1]s LOGIN; CREATE SCHEMA AUTHORIZATION %[1]s; ALTER ROLE %[1]s SET search_path = %[1]s", name))
	return fmt.Sprintf("postgres://%s@/postgres?host=%s", name, s.Folder)
}

func (s *Server) psql(t testing.TB, statements string) {
	t.Helper()
	s.run(t, "psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--host", s.Folder, "--username", "sandboxd", "--command", statements, "postgres")
}

// WantPassword makes the server ask for a password from now on, which that URL's user has.
func (s *Server) WantPassword(t testing.TB, address, password string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	s.psql(t, fmt.Sprintf("ALTER USER %s PASSWORD '%s'", u.User.Username(), password))
	if err := os.WriteFile(filepath.Join(s.data(), "pg_hba.conf"), []byte("local all all scram-sha-256\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(t, "pg_ctl", "reload", "--pgdata", s.data(), "--silent")
}

// Socket is the path of the server's socket.
func (s *Server) Socket() string { return filepath.Join(s.Folder, ".s.PGSQL.5432") }

func (s *Server) data() string { return filepath.Join(s.Folder, "data") }

// run runs a program of PostgreSQL.
func (s *Server) run(t testing.TB, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = s.Folder
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	// Not a pipe: the server would keep it open.
	out, err := os.CreateTemp("", "pgtest")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(out.Name())
		log, _ := os.ReadFile(filepath.Join(s.Folder, "log"))
		t.Fatalf("%s: %v\n%s\n%s", program, err, b, bytes.TrimSpace(log))
	}
}

// programs is the folder with the newest PostgreSQL.
func programs(t testing.TB) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Fatal("PostgreSQL is missing: scripts/setup.sh test installs it")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) }))
}

func postgres(t testing.TB) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}
