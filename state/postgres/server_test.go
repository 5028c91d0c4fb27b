package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/postgres/pgtest"
)

// add adds one to the number of a key.
func add(s *state.Store, key string) error {
	return s.Update(context.Background(), func(tx *state.Tx) error {
		b, err := tx.Get(key)
		if err != nil && !errors.Is(err, state.ErrNotFound) {
			return err
		}
		n, _ := strconv.Atoi(string(b))
		return tx.Put(key, []byte(strconv.Itoa(n+1)))
	})
}

func number(t *testing.T, s *state.Store, key string) (n int) {
	t.Helper()
	if err := s.View(t.Context(), func(r *state.Reader) error {
		b, err := r.Get(key)
		n, _ = strconv.Atoi(string(b))
		return err
	}); err != nil {
		t.Error(err)
	}
	return n
}

// TestShared has several daemons make, verify and change one store at the same time.
func TestShared(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)
	const daemons, writers, each = 3, 8, 10
	var stores [daemons]*state.Store
	var wg sync.WaitGroup
	for i := range stores {
		wg.Go(func() {
			s, err := Open(context.Background(), Options{URL: url})
			if err != nil {
				t.Error(err)
				return
			}
			stores[i] = s
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, s := range stores {
		if s.Epoch() != stores[0].Epoch() {
			t.Errorf("epochs %q and %q", s.Epoch(), stores[0].Epoch())
		}
		for range writers {
			wg.Go(func() {
				for range each {
					if err := add(s, "sum"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			if damage, err := s.Verify(context.Background(), nil); err != nil || len(damage) > 0 {
				t.Errorf("verified while others write: %v, %v", damage, err)
			}
		})
	}
	// Each entry of a queue is leased once.
	var mu sync.Mutex
	seen := map[uint64]bool{}
	for _, s := range stores {
		wg.Go(func() {
			for range 20 {
				if err := s.Update(context.Background(), func(tx *state.Tx) error { _, err := tx.Enqueue("q", nil, time.Unix(0, 0)); return err }); err != nil {
					t.Error(err)
				}
				var leased []state.Leased
				if err := s.Update(context.Background(), func(tx *state.Tx) (err error) {
					leased, err = tx.Lease("q", time.Unix(1, 0), time.Unix(1000, 0), 2)
					return err
				}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				for _, l := range leased {
					if seen[l.ID] {
						t.Errorf("entry %d is leased twice", l.ID)
					}
					seen[l.ID] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != daemons*20 {
		t.Errorf("%d entries were leased", len(seen))
	}
	for _, s := range stores {
		if n := number(t, s, "sum"); n != daemons*writers*each {
			t.Errorf("the sum is %d, want %d", n, daemons*writers*each)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestServerCrash crashes the server while updates run. What was acknowledged is there
// afterwards, what was refused is not, and the store goes on with the same daemon.
func TestServerCrash(t *testing.T) {
	server := pgtest.Start(t)
	s, err := Open(t.Context(), Options{URL: server.Database(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for round := range 3 {
		const writers = 8
		var wg sync.WaitGroup
		began := make(chan struct{}, writers)
		for i := range writers {
			wg.Go(func() {
				key := fmt.Sprintf("%d/%d", round, i)
				stored, unknown := 0, 0
				for {
					err := add(s, key)
					if err == nil {
						if stored++; stored == 3 {
							began <- struct{}{}
						}
						continue
					}
					if errors.Is(err, state.ErrUnknown) {
						unknown++
						continue
					}
					break
				}
				t.Logf("%s: %d stored, %d unknown", key, stored, unknown)
				wait(t, s)
				if n := number(t, s, key); n < stored || n > stored+unknown {
					t.Errorf("%s is %d; %d updates were acknowledged, and of %d nobody knows", key, n, stored, unknown)
				}
			})
		}
		for range writers {
			<-began
		}
		server.Down(t)
		server.Up(t)
		wg.Wait()
	}
	if damage, err := s.Verify(t.Context(), nil); err != nil || len(damage) > 0 {
		t.Errorf("damage %v, %v", damage, err)
	}
}

// wait waits until the store answers again.
func wait(t *testing.T, s *state.Store) {
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = s.View(t.Context(), func(r *state.Reader) error { _, err := r.Count(""); return err }); err == nil {
			return
		}
	}
	t.Errorf("the store does not come back: %v", err)
}

// cutConn is a connection that is lost during its first commit once it is armed, before the server
// gets it or after it has answered.
type cutConn struct {
	net.Conn
	after bool
	lost  bool // this is the one
	state *cutState
}

// cutState is shared by the connections of a store.
type cutState struct {
	mu                 sync.Mutex
	armed, named, done bool
}

func (c *cutConn) Write(b []byte) (int, error) {
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	switch {
	case !c.state.armed:
	case bytes.Contains(b, []byte("COMMIT\x00")): // is prepared, and executed by the messages after this one
		c.state.named = true
	case c.state.named && !c.state.done:
		if bytes.Contains(b, []byte("E\x00\x00\x00\x09")) { // Execute, of any statement: the next one is the commit
			c.state.named = false
			c.lost, c.state.done = true, true
			if !c.after {
				c.Close()
				return 0, io.ErrUnexpectedEOF
			}
		}
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	if c.lost {
		c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// TestUnknown loses the connection during a commit. Whether the change is stored, the error
// does not say; it is not made again by itself; and the store goes on.
func TestUnknown(t *testing.T) {
	server := pgtest.Start(t)
	for _, after := range []bool{false, true} {
		cut := &cutState{}
		s, err := Open(t.Context(), Options{URL: server.Database(t), Dial: func(_ context.Context, network, address string) (net.Conn, error) {
			conn, err := net.Dial(network, address)
			return &cutConn{Conn: conn, after: after, state: cut}, err
		}})
		if err != nil {
			t.Fatal(err)
		}
		cut.mu.Lock()
		cut.armed = true // Open has committed too
		cut.mu.Unlock()
		if err := add(s, "a"); !errors.Is(err, state.ErrUnknown) {
			t.Errorf("answer lost %v: %v", after, err)
		}
		want := 0
		if after {
			want = 1
		}
		if err := s.View(t.Context(), func(r *state.Reader) error {
			n, err := r.Count("a")
			if n != want {
				t.Errorf("answer lost %v: %d keys", after, n)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		if err := add(s, "a"); err != nil || number(t, s, "a") != want+1 {
			t.Errorf("answer lost %v: an update after it: %v", after, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestUnsafeServer refuses servers that lose what they acknowledged.
func TestUnsafeServer(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)
	for _, setting := range []string{"fsync=off", "full_page_writes=off", "default_transaction_read_only=on"} {
		server.Down(t)
		server.Up(t, setting)
		name, _, _ := strings.Cut(setting, "=")
		name = strings.TrimPrefix(name, "default_")
		if s, err := Open(t.Context(), Options{URL: url}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("a server with %s: %v, %v", setting, s, err)
		}
	}
	// What the server has by default does not matter where sandboxd sets it.
	server.Down(t)
	server.Up(t, "synchronous_commit=off")
	s, err := Open(t.Context(), Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestPassword(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)
	server.WantPassword(t, url, "open-sesame")
	s, err := Open(t.Context(), Options{URL: url, Password: "open-sesame"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, password := range []string{"", "open-barley"} {
		if _, err := Open(t.Context(), Options{URL: url, Password: password}); err == nil || password != "" && strings.Contains(err.Error(), password) {
			t.Errorf("with the password %q: %v", password, err)
		}
	}
}

func TestAddress(t *testing.T) {
	for address, want := range map[string]string{
		"postgres://u@db.example/name":                     "",
		"postgres://u@db.example:5433/name":                "",
		"postgresql://u@10.0.0.1/name?sslmode=verify-full": "",
		"postgres://u@db.example/name?sslmode=disable":     "",
		"postgres://u@/name?host=/run/postgresql":          "",
		"postgres://u:p@db.example/name":                   "password",
		"postgres://u@db.example/name?sslmode=require":     "does not verify",
		"postgres://u@db.example/name?sslmode=prefer":      "does not verify",
		"postgres://u@db.example/name?passfile=/etc/x":     `"passfile"`,
		"postgres://u@db.example/name?service=x":           `"service"`,
		"postgres://u@db.example/name?sslrootcert=/x":      `"sslrootcert"`,
		"postgres://db.example/name":                       "form",
		"postgres://u@db.example":                          "form",
		"postgres://u@/name":                               "host",
		"mysql://u@db.example/name":                        "form",
		"postgres://u@db.example:port/name":                "form",
		"":                                                 "form",
	} {
		config, err := Options{URL: address, Password: "secret"}.config()
		if want == "" {
			if err != nil || config.Password != "secret" || len(config.Fallbacks) > 0 {
				t.Errorf("%s: %+v, %v", address, config, err)
			} else if safe := strings.Contains(address, "disable") || strings.Contains(address, "/run"); safe == (config.TLSConfig != nil) {
				t.Errorf("%s: TLS %v", address, config.TLSConfig)
			}
		} else if !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %s", address, err, want)
		}
	}
}

// TestTLS speaks to a server by TLS, with its certificate verified, or not at all.
func TestTLS(t *testing.T) {
	server := pgtest.Start(t)
	user, _, _ := strings.Cut(strings.TrimPrefix(server.Database(t), "postgres://"), "@")
	ca, cert := pgtest.Certificate(t, "db.example")
	otherCA, _ := pgtest.Certificate(t, "db.example")
	options := Options{URL: "postgres://" + user + "@db.example:5432/postgres", CA: ca}
	options.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if network != "tcp" || address != "db.example:5432" {
			return nil, fmt.Errorf("dialled %s %s", network, address)
		}
		client, front := net.Pipe()
		go server.Terminate(front, cert)
		return client, nil
	}
	s, err := Open(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(add(s, "a"), s.Close()); err != nil {
		t.Error(err)
	}
	wrong := options
	wrong.CA = otherCA
	if _, err := Open(t.Context(), wrong); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of another authority: %v", err)
	}
	wrong = options
	wrong.URL = strings.Replace(options.URL, "db.example", "other.example", 1)
	wrong.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return options.Dial(ctx, network, "db.example:5432")
	}
	if _, err := Open(t.Context(), wrong); err == nil || !strings.Contains(err.Error(), "other.example") {
		t.Errorf("a certificate of another host: %v", err)
	}
	plain := options
	plain.Dial = func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", server.Socket()) }
	if _, err := Open(t.Context(), plain); err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("a server without TLS: %v", err)
	}
}
