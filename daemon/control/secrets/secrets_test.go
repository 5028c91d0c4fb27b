package secrets

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/lambda/access"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

func key(n byte) []byte { return bytes.Repeat([]byte{n}, seal.KeySize) }

func ringOf(t *testing.T, keys ...[]byte) *seal.Ring {
	t.Helper()
	r, err := seal.New(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func openStore(t *testing.T) *state.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Options{Folder: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *state.Store, key string, value []byte) {
	t.Helper()
	if err := s.Update(t.Context(), func(tx *state.Tx) error { return tx.Put(key, value) }); err != nil {
		t.Fatal(err)
	}
}

// After a rotation the new host key alone opens everything: access keys, environments of
// functions, of their next revisions, and of revisions that were replaced. Nothing else has
// changed. There are more rows than fit into one transaction.
func TestReseal(t *testing.T) {
	s := openStore(t)
	old, both, last := ringOf(t, key(1)), ringOf(t, key(2), key(1)), ringOf(t, key(2))
	keys := access.NewKeys(access.Config{Store: s, Ring: old, Scope: sigv4.Scope{Region: "r", Service: "lambda"}, Now: time.Now})
	const functions, replaced, holders = 2*page + 3, 5, 7
	env := func(text, name string) string {
		b, err := Sealer{old}.Seal("fn/"+name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		j, _ := json.Marshal(b)
		return string(j)
	}
	for i := range functions {
		name := fmt.Sprintf("f%04d", i)
		put(t, s, "fn/"+name, fmt.Appendf(nil, `{"Name":%q,"State":"Active","Current":{"Number":1,"Env":%s},"Next":{"Number":2,"Env":%s}}`, name, env("now", name), env("next", name)))
	}
	put(t, s, "fn/plain", []byte(`{"Name":"plain","State":"Active","Current":{"Number":1}}`))
	for i := range replaced {
		put(t, s, fmt.Sprintf("rev/%020d", i), fmt.Appendf(nil, `{"Name":"f0000","Replaced":true,"Env":%s}`, env("old", "f0000")))
	}
	put(t, s, "meta/other", []byte("no JSON"))
	var ids []string
	for range holders {
		k, _, err := keys.Create(t.Context(), access.Admin, nil)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, k.ID)
	}
	if _, err := keys.Revoke(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}

	if r, err := Reseal(t.Context(), s, last); err != nil || r.Resealed != 0 || r.Unreadable != functions+replaced+holders-1 || !errors.Is(r.Err, seal.ErrNoKey) {
		t.Errorf("without the old key: %+v, %v", r, err)
	}
	if r, err := Reseal(t.Context(), s, both); err != nil || r.Resealed != functions+replaced+holders-1 || r.Unreadable != 0 || r.Err != nil {
		t.Fatalf("with both keys: %+v, %v", r, err)
	}
	if r, err := Reseal(t.Context(), s, both); err != nil || r.Resealed != 0 || r.Unreadable != 0 {
		t.Errorf("once more: %+v, %v", r, err)
	}

	var row struct {
		Name, State   string
		Current, Next struct {
			Number int
			Env    []byte
		}
		Env []byte
	}
	read := func(k string) {
		t.Helper()
		row.Env, row.Current.Env = nil, nil
		if err := s.View(t.Context(), func(r *state.Reader) error {
			b, err := r.Get(k)
			if err != nil {
				return err
			}
			return json.Unmarshal(b, &row)
		}); err != nil {
			t.Fatal(err)
		}
	}
	opens := func(what, name string, sealed []byte) {
		t.Helper()
		if plain, err := (Sealer{last}).Open("fn/"+name, sealed); err != nil || string(plain) != what {
			t.Errorf("%s of %s: %q, %v", what, name, plain, err)
		}
	}
	for _, i := range []int{0, page - 1, page, functions - 1} {
		name := fmt.Sprintf("f%04d", i)
		read("fn/" + name)
		opens("now", name, row.Current.Env)
		opens("next", name, row.Next.Env)
		if row.State != "Active" || row.Current.Number != 1 || row.Next.Number != 2 {
			t.Errorf("%+v", row)
		}
	}
	read(fmt.Sprintf("rev/%020d", 3))
	opens("old", "f0000", row.Env)
	list, err := keys.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range list {
		if _, err := k.Open(last); k.Active() && err != nil {
			t.Errorf("%s: %v", k.ID, err)
		}
	}
}

// What cannot be read stays as it is, and is counted; the rest is encrypted again.
func TestResealDamaged(t *testing.T) {
	s := openStore(t)
	both := ringOf(t, key(2), key(1))
	env, err := Sealer{ringOf(t, key(1))}.Seal("fn/a", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	j, _ := json.Marshal(env)
	put(t, s, "fn/a", fmt.Appendf(nil, `{"Name":"a","Current":{"Env":%s}}`, j))
	moved := fmt.Sprintf(`{"Name":"b","Current":{"Env":%s}}`, j)
	put(t, s, "fn/b", []byte(moved))
	r, err := Reseal(t.Context(), s, both)
	if err != nil || r.Resealed != 1 || r.Unreadable != 1 || !errors.Is(r.Err, seal.ErrDamaged) || !strings.Contains(r.Err.Error(), "fn/b") {
		t.Errorf("%+v, %v", r, err)
	}
	if err := s.View(t.Context(), func(r *state.Reader) error {
		if b, err := r.Get("fn/b"); err != nil || string(b) != moved {
			t.Errorf("%s, %v", b, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
