package lambda

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/sandboxd/sandboxd/state"
)

// NewStore returns a store of package state as a [Store].
func NewStore(s *state.Store) Store { return stateStore{s} }

type stateStore struct{ s *state.Store }

func (s stateStore) View(ctx context.Context, f func(Reader) error) error {
	return s.s.View(ctx, func(r *state.Reader) error { return f(stateReader{r}) })
}

func (s stateStore) Update(ctx context.Context, f func(Tx) error) error {
	return s.s.Update(ctx, func(tx *state.Tx) error { return f(stateTx{stateReader{&tx.Reader}, tx}) })
}

// Epoch makes a number of the store's epoch, which is a random text.
func (s stateStore) Epoch() uint64 {
	sum := sha256.Sum256([]byte(s.s.Epoch()))
	return binary.BigEndian.Uint64(sum[:8])
}

type stateReader struct{ r *state.Reader }

func (r stateReader) Get(key string) ([]byte, error) {
	value, err := r.r.Get(key)
	if errors.Is(err, state.ErrNotFound) {
		return nil, nil
	}
	return value, err
}

func (r stateReader) List(prefix, after string, limit int) ([]Entry, error) {
	pairs, err := r.r.List(prefix, after, limit)
	entries := make([]Entry, len(pairs))
	for i, p := range pairs {
		entries[i] = Entry(p)
	}
	return entries, err
}

type stateTx struct {
	stateReader
	tx *state.Tx
}

func (t stateTx) Put(key string, value []byte) error { return t.tx.Put(key, value) }

func (t stateTx) Delete(key string) error {
	if err := t.tx.Delete(key); !errors.Is(err, state.ErrNotFound) {
		return err
	}
	return nil
}
