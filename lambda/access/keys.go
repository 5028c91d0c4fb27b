package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
	"github.com/sandboxd/sandboxd/state"
)

// Rows begins the keys of the store that have access keys. The id follows.
const Rows = table + "/"

// maxKeys bounds the access keys in the store, with those that were revoked: these stay, so
// that a list tells of them, and so that a first key that was revoked is not stored again.
const maxKeys = 10_000

// Kinds of errors of Keys, for errors.Is.
var (
	ErrNoKey   = errors.New("there is no such access key")
	ErrTooMany = fmt.Errorf("there are %d access keys, and there may be no more", maxKeys)
)

// Config configures Keys.
type Config struct {
	Store *state.Store
	Ring  *seal.Ring
	Scope sigv4.Scope // of all signatures
	// Unsigned says that the worker may pass on requests without a signature.
	Unsigned bool
	Now      func() time.Time // nil is time.Now
	// OnError, if not nil, receives errors that fail no request.
	OnError func(error)
}

// Keys are the access keys in the store. Nothing of them is kept in memory: a revocation is in
// force when it is stored. The methods are safe for concurrent use.
type Keys struct {
	cfg Config

	mu    sync.Mutex
	used  map[string]string // by id, the last day on which a key was used, as far as it was stored
	marks sync.WaitGroup    // of days being stored
}

// NewKeys returns the keys in a store. Close them before the store.
func NewKeys(cfg Config) *Keys {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.OnError == nil {
		cfg.OnError = func(error) {}
	}
	return &Keys{cfg: cfg, used: map[string]string{}}
}

// Close waits until all is stored.
func (k *Keys) Close() { k.marks.Wait() }

// Create makes an access key as [New] does, and returns it with its secret when it is stored.
func (k *Keys) Create(ctx context.Context, kind Kind, functions []string) (Key, string, error) {
	key, secret, err := New(kind, functions, k.cfg.Now(), k.cfg.Ring)
	if err != nil {
		return Key{}, "", err
	}
	return key, secret, k.cfg.Store.Update(ctx, func(tx *state.Tx) error { return add(tx, key) })
}

// Adopt stores an administrator's access key whose secret is known, unless there is or was one
// with its id.
func (k *Keys) Adopt(ctx context.Context, id, secret string) error {
	key := Key{ID: id, Kind: Admin, Created: k.cfg.Now().UTC()}
	var err error
	if key.Secret, err = k.cfg.Ring.Seal([]byte(secret), key.place()); err != nil {
		return err
	}
	return k.cfg.Store.Update(ctx, func(tx *state.Tx) error {
		_, err := load(&tx.Reader, id)
		if errors.Is(err, ErrNoKey) {
			return add(tx, key)
		}
		return err
	})
}

func add(tx *state.Tx, key Key) error {
	n, err := tx.Count(Rows)
	if err == nil && n >= maxKeys {
		err = ErrTooMany
	}
	if err != nil {
		return err
	}
	return store(tx, key)
}

// List returns all access keys, those that were revoked too, in the order of their ids.
func (k *Keys) List(ctx context.Context) ([]Key, error) {
	keys := []Key{}
	err := k.cfg.Store.View(ctx, func(r *state.Reader) error {
		pairs, err := r.List(Rows, "", maxKeys)
		if err != nil {
			return err
		}
		keys = keys[:0]
		for _, p := range pairs {
			key, err := decode(p.Key[len(Rows):], p.Value)
			if err != nil {
				return err
			}
			keys = append(keys, key)
		}
		return nil
	})
	return keys, err
}

// Revoke revokes an access key for good, and returns it as it is then, without a secret. It
// does no harm to revoke a key again. The error is ErrNoKey if there is none with that id.
func (k *Keys) Revoke(ctx context.Context, id string) (key Key, err error) {
	err = k.cfg.Store.Update(ctx, func(tx *state.Tx) error {
		if key, err = load(&tx.Reader, id); err != nil || !key.Active() {
			return err
		}
		key.Revoked, key.Secret = k.cfg.Now().UTC(), nil
		return store(tx, key)
	})
	return key, err
}

// Reseal returns a row of an access key with its secret encrypted by the first key of a ring,
// and reports whether it was not already.
func Reseal(row string, value []byte, ring *seal.Ring) (again []byte, changed bool, err error) {
	key, err := decode(row[len(Rows):], value)
	if err != nil {
		return nil, false, err
	}
	if !key.Active() {
		return value, false, nil
	}
	if changed, err = key.Reseal(ring); err != nil || !changed {
		return value, false, err
	}
	again, err = json.Marshal(key)
	return again, true, err
}

// active returns the access key with that id, and its secret. It is nil if there is none, or
// if it was revoked.
func (k *Keys) active(ctx context.Context, id string) (*Key, string, error) {
	if len(id) > maxID {
		return nil, "", nil
	}
	var key Key
	err := k.cfg.Store.View(ctx, func(r *state.Reader) (err error) {
		key, err = load(r, id)
		return err
	})
	if errors.Is(err, ErrNoKey) || err == nil && !key.Active() {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	secret, err := key.Open(k.cfg.Ring)
	return &key, secret, err
}

// maxID is the longest id of an access key in a request.
const maxID = 128

// mark stores that a key was used today, in the background, unless that is stored already.
func (k *Keys) mark(key *Key) {
	today := k.cfg.Now().UTC().Format(dayForm)
	if key.Used >= today {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.used[key.ID] == today {
		return
	}
	if len(k.used) >= maxKeys {
		clear(k.used)
	}
	k.used[key.ID] = today
	k.marks.Go(func() {
		err := k.cfg.Store.Update(context.Background(), func(tx *state.Tx) error {
			now, err := load(&tx.Reader, key.ID)
			if err != nil || now.Used >= today {
				return err
			}
			now.Used = today
			return store(tx, now)
		})
		if err != nil {
			k.cfg.OnError(fmt.Errorf("store the day on which access key %s was used: %w", key.ID, err))
		}
	})
}

// dayForm is the form of Key.Used.
const dayForm = "2006-01-02"

// load reads a key. The error is ErrNoKey if there is none.
func load(r *state.Reader, id string) (Key, error) {
	value, err := r.Get(Rows + id)
	if errors.Is(err, state.ErrNotFound) {
		return Key{}, ErrNoKey
	}
	if err != nil {
		return Key{}, err
	}
	return decode(id, value)
}

// decode reads a row. The id must be that of the row: the secret was encrypted for it.
func decode(id string, value []byte) (Key, error) {
	var key Key
	if err := json.Unmarshal(value, &key); err != nil || key.ID != id {
		return Key{}, fmt.Errorf("access key %.128q in the store has a form that this sandboxd does not know: %w", id, state.ErrDamaged)
	}
	return key, nil
}

func store(tx *state.Tx, key Key) error {
	value, err := json.Marshal(key)
	if err != nil {
		return err
	}
	return tx.Put(Rows+key.ID, value)
}
