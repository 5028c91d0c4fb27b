package operator

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/daemon/admin"
)

// backups serves a desk whose backups are made by do, to the user uid. The times of the server
// are short, as those of other commands are.
func backups(t *testing.T, uid int, do func(context.Context, io.Writer, bool) error) (*desk, *httptest.Server) {
	t.Helper()
	d := newDesk(t, func(c *Config) { c.Backup = do })
	srv := httptest.NewUnstartedServer(d)
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = 50*time.Millisecond, 50*time.Millisecond
	srv.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, peerKey{}, Peer{uid, 7})
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return d, srv
}

func get(t *testing.T, url string) (status int, body, trailer string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return res.StatusCode, string(text), res.Trailer.Get(admin.BackupTrailer)
}

// A backup may take longer than other commands, and its end says that it is whole.
func TestBackup(t *testing.T) {
	d, srv := backups(t, 0, func(ctx context.Context, w io.Writer, hostKey bool) error {
		for range 3 {
			select {
			case <-time.After(60 * time.Millisecond): // longer than the server's times
			case <-ctx.Done():
				return ctx.Err()
			}
			if _, err := io.WriteString(w, "part "); err != nil {
				return err
			}
		}
		if hostKey {
			_, err := io.WriteString(w, "key")
			return err
		}
		return nil
	})
	for query, want := range map[string]string{"": "part part part ", "?host-key=1": "part part part key"} {
		if status, body, trailer := get(t, srv.URL+admin.BackupPath+query); status != 200 || body != want || trailer != admin.BackupWhole {
			t.Errorf("%s: %d %q %q", query, status, body, trailer)
		}
	}
	if n := strings.Count(d.audit.String(), `"action":"backup"`); n != 2 {
		t.Errorf("%d lines in the audit log: %s", n, d.audit)
	}
}

// Only root gets the host key. An error within a backup is reported at its end.
func TestBackupFails(t *testing.T) {
	_, srv := backups(t, 1000, func(_ context.Context, w io.Writer, hostKey bool) error {
		if hostKey {
			t.Error("the host key is given to another user")
		}
		_, _ = io.WriteString(w, "part")
		return errors.New("the disk\nis damaged")
	})
	if status, body, _ := get(t, srv.URL+admin.BackupPath+"?host-key=1"); status != 403 || !strings.Contains(body, "only root") {
		t.Errorf("%d %s", status, body)
	}
	if status, body, trailer := get(t, srv.URL+admin.BackupPath); status != 200 || body != "part" || trailer != `the disk\nis damaged` {
		t.Errorf("%d %q %q", status, body, trailer)
	}
}

// One backup is made at a time. One that nobody reads ends, and makes room for the next.
func TestBackupStalls(t *testing.T) {
	begun, ended := make(chan struct{}, 1), make(chan error, 1)
	d, srv := backups(t, 0, func(_ context.Context, w io.Writer, _ bool) error {
		begun <- struct{}{}
		var err error
		for part := make([]byte, 1<<20); err == nil; {
			_, err = w.Write(part)
		}
		ended <- err
		return err
	})
	d.stall = time.Second
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET "+admin.BackupPath+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-begun
	if status, body, _ := get(t, srv.URL+admin.BackupPath); status != 409 || !strings.Contains(body, "another backup") {
		t.Errorf("a second one: %d %s", status, body)
	}
	if err := <-ended; err == nil {
		t.Error("no error")
	}
}
