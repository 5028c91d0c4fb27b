// Package secrets encrypts what the store of the control process must not tell: environments
// of functions, and secrets of access keys. When the host key was rotated, it encrypts all of
// them again.
package secrets

import (
	"context"
	"errors"
	"fmt"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/lambda"
	"github.com/sandboxd/sandboxd/lambda/access"
	"github.com/sandboxd/sandboxd/state"
)

// table is what environments are bound to, beside the row of their function in the store.
const table = "keys"

// Sealer encrypts environments. It implements lambda.Sealer.
type Sealer struct{ Ring *seal.Ring }

// Seal encrypts an environment.
func (s Sealer) Seal(context string, plain []byte) ([]byte, error) {
	return s.Ring.Seal(plain, seal.Place{Table: table, Key: context})
}

// Open decrypts what Seal has encrypted for the same context.
func (s Sealer) Open(context string, sealed []byte) ([]byte, error) {
	return s.Ring.Open(sealed, seal.Place{Table: table, Key: context})
}

// rows are the rows that have secrets.
type rows struct {
	prefix string
	reseal func(key string, value []byte, ring *seal.Ring) ([]byte, bool, error)
}

func allRows() []rows {
	all := []rows{{access.Rows, access.Reseal}}
	for _, prefix := range lambda.SealedRows {
		all = append(all, rows{prefix, func(key string, value []byte, ring *seal.Ring) ([]byte, bool, error) {
			return lambda.Reseal(key, value, func(context string, sealed []byte) ([]byte, bool, error) {
				return ring.Reseal(sealed, seal.Place{Table: table, Key: context})
			})
		}})
	}
	return all
}

// page is how many rows are encrypted again in one transaction.
const page = 200

// Result says what became of the secrets in a store.
type Result struct {
	Resealed   int   // rows that were encrypted again
	Unreadable int   // rows that no host key decrypts, or that are damaged; they stay as they are
	Err        error // of one of the latter
}

// Reseal encrypts all secrets in a store again that were not encrypted with the first key of a
// ring. The others are not needed any more when it returns without an error. It may end at any
// point, and be repeated. Nothing else may change the store meanwhile.
func Reseal(ctx context.Context, store *state.Store, ring *seal.Ring) (Result, error) {
	var all Result
	for _, rows := range allRows() {
		for after, more := "", true; more; {
			var err error
			if after, more, err = resealPage(ctx, store, ring, rows, after, &all); err != nil {
				return all, fmt.Errorf("encrypt the secrets in the store again: %w", err)
			}
			failpoint.Pass(failpoint.HalfResealed)
		}
	}
	return all, nil
}

// resealPage does the rows behind after, as far as they fit into a transaction.
func resealPage(ctx context.Context, store *state.Store, ring *seal.Ring, r rows, after string, all *Result) (last string, more bool, err error) {
	var now Result
	err = store.Update(ctx, func(tx *state.Tx) error {
		now, last = Result{}, after
		pairs, err := tx.List(r.prefix, after, page)
		if err != nil {
			return err
		}
		more = len(pairs) == page
		for _, p := range pairs {
			last = p.Key
			again, changed, err := r.reseal(p.Key, p.Value, ring)
			switch {
			case isUnreadable(err):
				now.Unreadable++
				now.Err = err
			case err != nil:
				return err
			case changed:
				now.Resealed++
				if err := tx.Put(p.Key, again); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return "", false, err
	}
	all.Resealed += now.Resealed
	all.Unreadable += now.Unreadable
	if now.Err != nil {
		all.Err = now.Err
	}
	return last, more, nil
}

// isUnreadable reports whether err is that of a value, and not of the store.
func isUnreadable(err error) bool {
	return errors.Is(err, seal.ErrNoKey) || errors.Is(err, seal.ErrDamaged) || errors.Is(err, state.ErrDamaged)
}
