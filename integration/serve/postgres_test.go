//go:build integration

package serve

import (
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/state/postgres/pgtest"
)

// secretFile makes a file that only root can read.
func secretFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// once is client without repetitions.
func (d *keyed) once(k accessKey) *lambda.Client {
	options := d.client(k).Options()
	options.RetryMaxAttempts = 1
	return lambda.New(options)
}

// The store is in PostgreSQL. While the server is away, functions run that are known, and no
// change is acknowledged; when it is there again, all goes on. A daemon may start before it.
func TestPostgres(t *testing.T) {
	server := pgtest.Start(t)
	address := server.Database(t)
	server.WantPassword(t, address, "open-sesame")
	f := harness.NewFolders(t)
	flags := []string{"--store", address, "--store-password-file", secretFile(t, "open-sesame\n")}
	d := serveKeyed(t, f, flags...)
	first := d.first()
	c := d.client(first)
	d.create(c, "f", "x")
	invoker := findKey(t, d.key("create", "--invoke", "f")) // which the worker verifies itself
	check := func(when string) {
		t.Helper()
		if got := invoke(t.Context(), d.client(invoker), "f"); got != `"x"` {
			t.Errorf("%s: %s", when, got)
		}
	}
	check("at first")
	if err := describe(t, c, "f", 1); err != nil {
		t.Fatal(err)
	}
	if err := lambda.NewFunctionUpdatedV2Waiter(c).Wait(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f")}, harness.Patience); err != nil {
		t.Fatal(err)
	}
	check("after an update")
	if _, err := os.Stat(filepath.Join(f.State, "control", "store", "store.db")); err == nil {
		t.Error("there is a store in the folder too")
	}

	server.Down(t)
	check("without the server")
	if err := describe(t, d.once(first), "f", 2); err == nil {
		t.Error("a change is acknowledged without the server")
	}
	server.Up(t)
	harness.Eventually(t, harness.Patience, func() string {
		if err := describe(t, c, "f", 3); err != nil {
			return err.Error()
		}
		return ""
	})
	check("after its restart")
	if n := description(t, c, "f"); n != 3 {
		t.Errorf("the last change is %d", n)
	}

	d.Stop()
	server.Down(t)
	d = serveKeyed(t, f, flags...)
	d.WaitFor("the database of --store cannot be reached")
	server.Up(t)
	c = d.client(first)
	harness.Eventually(t, harness.Patience, func() string { return strings.Trim(invoke(t.Context(), c, "f"), `"x`) })
	if n := description(t, c, "f"); n != 3 {
		t.Errorf("after a restart of both, the last change is %d", n)
	}
	for _, text := range d.commandLines() {
		if strings.Contains(text, "open-sesame") {
			t.Errorf("the password is in a command line: %q", text)
		}
	}
}

// commandLines are those of the daemon's processes, with their environments.
func (d *keyed) commandLines() (list []string) {
	for _, pid := range harness.PIDs(d.T) {
		if p, ok := harness.ReadProcess(pid); ok && (pid == d.Cmd.Process.Pid || strings.HasPrefix(harness.Command(pid), "sandboxd-") && p.Status("PPid") != "") {
			for _, name := range []string{"cmdline", "environ"} {
				text, _ := os.ReadFile(filepath.Join("/proc", p.Status("Pid"), name))
				list = append(list, string(text))
			}
		}
	}
	return list
}

// A server on a network is spoken to by TLS. Its certificate is verified for its name, which
// nobody looks up.
func TestPostgresTLS(t *testing.T) {
	server := pgtest.Start(t)
	u, err := url.Parse(server.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	ca, cert := pgtest.Certificate(t, "db.example")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { l.Close() })
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				serving.Go(func() { server.Terminate(conn, cert) })
			}
		}
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	address := "postgres://" + u.User.Username() + "@db.example:" + port + "/postgres"
	serve := func(f harness.Folders, args ...string) []string {
		return append(append([]string{"serve", "--listen=127.0.0.1:0"}, f.Flags()...), args...)
	}
	f := harness.NewFolders(t)
	mustFail(t, "add ?hostaddr=ADDRESS", serve(f, "--store", address)...)
	mustFail(t, "--store-password-file", serve(f, "--store", strings.Replace(address, "@", ":open-sesame@", 1))...)
	address += "?hostaddr=127.0.0.1"
	other, _ := pgtest.Certificate(t, "db.example")
	mustFail(t, "certificate", serve(f, "--store", address, "--store-ca", secretFile(t, string(other)))...)
	d := serveKeyed(t, f, "--store", address, "--store-ca", secretFile(t, string(ca)))
	d.create(d.client(d.first()), "f", "x")
	if got := invoke(t.Context(), d.client(d.first()), "f"); got != `"x"` {
		t.Error(got)
	}
	d.Stop() // before the server
}

// A backup moves functions from a folder into a database, and back.
func TestMoveToPostgres(t *testing.T) {
	server := pgtest.Start(t)
	address := server.Database(t)
	d := serveKeyed(t, harness.NewFolders(t))
	first := d.first()
	d.create(d.client(first), "f", "x")
	mustFail(t, "there is a store in", restoreTwice(t, d, address)...)
	inDatabase := harness.NewFolders(t)
	address = server.Database(t)
	mustRun(t, restore(inDatabase, d.backup("--with-host-key"), "--store", address)...)
	d.Stop()
	mustFail(t, "give its --store", append([]string{"serve", "--listen=127.0.0.1:0"}, inDatabase.Flags()...)...)
	mustFail(t, "has a store of its own", append([]string{"serve", "--listen=127.0.0.1:0", "--store", address}, d.Folders.Flags()...)...)
	d2 := serveKeyed(t, inDatabase, "--store", address)
	if got := invoke(t.Context(), d2.client(first), "f"); got != `"x"` {
		t.Error(got)
	}
	mustFail(t, "whose code is in another --state-dir", append([]string{"serve", "--listen=127.0.0.1:0", "--store", address}, harness.NewFolders(t).Flags()...)...)
	mustFail(t, "another store than --state-dir belongs to", append([]string{"serve", "--listen=127.0.0.1:0", "--store", server.Database(t)}, stopped(t, inDatabase, d2).Flags()...)...)
	d2 = serveKeyed(t, inDatabase, "--store", address)
	back := harness.NewFolders(t)
	mustRun(t, restore(back, d2.backup("--with-host-key"))...)
	d3 := serveKeyed(t, back)
	if got := invoke(t.Context(), d3.client(first), "f"); got != `"x"` {
		t.Error(got)
	}
	if _, err := d3.client(first).GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f")}); err != nil {
		t.Error(err)
	}
	d2.Stop() // before the server
}

// stopped stops a daemon, and returns its folders.
func stopped(t *testing.T, f harness.Folders, d *keyed) harness.Folders {
	t.Helper()
	d.Stop()
	return f
}

// restoreTwice restores a backup into a database, and returns the arguments that would do so
// again, for another folder.
func restoreTwice(t *testing.T, d *keyed, address string) []string {
	t.Helper()
	path := d.backup()
	mustRun(t, restore(harness.NewFolders(t), path, "--store", address)...)
	return restore(harness.NewFolders(t), path, "--store", address)
}
