package lambda

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// openStore opens the store in a folder, and returns a function that closes it.
func openStore(t testing.TB, folder string) (Store, func()) {
	t.Helper()
	s, err := sqlite.Open(context.Background(), sqlite.Options{Folder: folder})
	if err != nil {
		t.Fatal(err)
	}
	return NewStore(s), func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// With the store of package state functions are there again after a restart.
func TestRestart(t *testing.T) {
	folder := t.TempDir()
	store, closeStore := openStore(t, folder)
	f := newFixture(t, func(c *Config, _ *fixture) { c.Store = store })
	f.create(merge(newFunction("f"), j{"Environment": j{"Variables": j{"A1": "b"}}, "Tags": j{"a": "b"}}))
	f.create(newFunction("g"))
	if a := f.send("PUT", named("f", "/code", ""), j{"ZipFile": []byte("other")}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	f.settled("f")
	if a := f.send("DELETE", named("g", "", ""), nil); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	if a := f.send("GET", named("none", "", ""), nil); a.status != 404 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	before := f.send("GET", named("f", "/configuration", ""), nil)
	revision, err := f.Resolve(t.Context(), "f", "")
	if err != nil {
		t.Fatal(err)
	}
	f.cancel()
	closeStore()

	store, closeStore = openStore(t, folder)
	defer closeStore()
	f.start(func(c *Config, _ *fixture) { c.Store = store })
	if after := f.send("GET", named("f", "/configuration", ""), nil); after.raw != before.raw || after.status != 200 {
		t.Errorf("%s became %s", before.raw, after.raw)
	}
	if again, err := f.Resolve(t.Context(), "f", ""); err != nil || fmt.Sprint(again) != fmt.Sprint(revision) {
		t.Errorf("%v became %v, %v", revision, again, err)
	}
	if a := f.send("GET", functions, nil); len(a.body["Functions"].([]any)) != 1 {
		t.Errorf("%s", a.raw)
	}
	seen := 0
	if err := f.Code(t.Context(), func(digest [32]byte) { seen++ }); err != nil || seen != 1 {
		t.Errorf("%d digests, %v", seen, err)
	}
	f.cancel()
}

// What is wrong with the store is named to clients, who can do something about it.
func TestStoreErrors(t *testing.T) {
	f := newFixture(t, nil)
	f.create(newFunction("f"))
	for _, c := range []struct {
		err    error
		status int
		text   string
	}{
		{fmt.Errorf("%w, since a row is damaged: restore a backup", state.ErrReadOnly), 503, "No change can be stored: the store is read-only, since a row is damaged: restore a backup"},
		{state.ErrNoSpace, 503, "No change can be stored: no space left for the store"},
		{&state.DamageError{Table: "keys", Key: "fn/f"}, 500, `"fn/f" in the store's keys is damaged: restore a backup`},
		{errors.New("secret detail"), 500, "An internal error occurred. The log of sandboxd has the cause under this request id."},
	} {
		f.store.fail = func() error { return c.err }
		a := f.send("PUT", named("f", "/configuration", ""), j{"Timeout": 4})
		if a.status != c.status || a.errorType() != "ServiceException" || a.text() != c.text {
			t.Errorf("%v: %d %s", c.err, a.status, a.raw)
		}
		if got := <-f.faults; !errors.Is(got, c.err) || !strings.Contains(got.Error(), a.header.Get("X-Amzn-Requestid")) {
			t.Errorf("the log has %v", got)
		}
		f.shaped(a)
	}
}

// BenchmarkListFunctions shows that a page costs the same however many functions there are.
func BenchmarkListFunctions(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store, closeStore := openStore(b, b.TempDir())
			defer closeStore()
			f := newFixture(b, func(c *Config, _ *fixture) { c.Store = store })
			err := store.Update(b.Context(), func(tx Tx) error {
				for i := range n {
					name := fmt.Sprintf("f%05d", i)
					d := f.newDefinition(name)
					d.Number, d.Runtime, d.Handler, d.Role = uint64(i+1), "python3.12", "h", testRole
					if err := put(tx, functionKeys+name, record{Name: name, State: active, Update: successful, Current: d}); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if a := f.send("GET", functions, nil); a.status != 200 {
					b.Fatalf("%d %s", a.status, a.raw)
				}
			}
		})
	}
}
