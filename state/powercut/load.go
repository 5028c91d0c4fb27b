package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/blob"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// hostKey is the file of the host keys in a folder. It is in one of its own, so that nobody else
// syncs its name.
const hostKey = "keys/hostkey"

// A keyError is what is wrong with the file of the host keys.
type keyError struct{ error }

// stores are the store, its blobs and the host keys in a folder.
type stores struct {
	root  *os.Root
	keys  *seal.Ring
	store *state.Store
	blobs *blob.Store
}

// open opens them, and makes them if there are none. synchronous is the pragma of SQLite.
func open(ctx context.Context, dir, synchronous string) (_ *stores, err error) {
	s := &stores{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.root, err = os.OpenRoot(dir); err != nil {
		return nil, err
	}
	for _, folder := range []string{"keys", "store"} {
		if err := s.root.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	if err := state.SyncFolder(dir); err != nil {
		return nil, err
	}
	if err := s.readKeys(filepath.Join(dir, hostKey)); err != nil {
		return nil, keyError{err}
	}
	if s.blobs, err = blob.Open(s.root, blob.Options{}); err != nil {
		return nil, err
	}
	s.store, err = sqlite.Open(ctx, sqlite.Options{Folder: filepath.Join(dir, "store"), Synchronous: synchronous})
	return s, err
}

// readKeys reads the host keys. If there are none it makes one.
func (s *stores) readKeys(path string) error {
	if err := seal.Create(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	text, err := seal.ReadFile(path)
	if err != nil {
		return err
	}
	s.keys, err = seal.Parse(text)
	return err
}

// rotate makes a new host key, encrypts all secrets with it and removes the old ones.
func (s *stores) rotate(ctx context.Context, path string) error {
	if err := seal.Rotate(path); err != nil {
		return err
	}
	if err := s.readKeys(path); err != nil {
		return err
	}
	err := s.store.Update(ctx, func(tx *state.Tx) error {
		list, err := tx.List("secret/", "", workers*slots)
		if err != nil {
			return err
		}
		for _, pair := range list {
			again, _, err := s.keys.Reseal(pair.Value, seal.Place{Table: "secret", Key: pair.Key})
			if err != nil {
				return err
			}
			if err := tx.Put(pair.Key, again); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return seal.Retire(path, s.keys.IDs()[0])
}

// close closes what is open.
func (s *stores) close() error {
	var errs []error
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.blobs != nil {
		errs = append(errs, s.blobs.Close())
	}
	if s.root != nil {
		errs = append(errs, s.root.Close())
	}
	return errors.Join(errs...)
}

// load changes the store until it is killed or something fails. It says on standard output
// what it begins ("begin WORKER N") and what was acknowledged ("done WORKER N").
func load(dir, synchronous string) error {
	ctx := context.Background()
	s, err := open(ctx, dir, synchronous)
	if err != nil {
		return err
	}
	changes, err := s.count(ctx, 0)
	if err != nil {
		return err
	}
	if changes%3 == 1 {
		if err := s.rotate(ctx, filepath.Join(dir, hostKey)); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for worker := range workers {
		n, err := s.count(ctx, worker)
		if err != nil {
			return err
		}
		p := newPart(worker, n)
		g.Go(func() error {
			for {
				say("begin %d %d", worker, p.n+1)
				if err := s.change(ctx, worker, p.n+1); err != nil {
					return err
				}
				p.next()
				say("done %d %d", worker, p.n)
			}
		})
	}
	g.Go(func() error {
		for {
			if _, err := s.sweep(ctx); err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond) // so that the others get a turn
		}
	})
	return g.Wait()
}

// say writes a line at once and whole.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stdout, format+"\n", args...)
}

// count returns how many changes of a worker the store has.
func (s *stores) count(ctx context.Context, worker int) (n uint64, err error) {
	err = s.store.View(ctx, func(r *state.Reader) error {
		n, err = countIn(r, worker)
		return err
	})
	return n, err
}

func countIn(r *state.Reader, worker int) (uint64, error) {
	value, err := r.Get(countKey(worker))
	if errors.Is(err, state.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(value), 10, 64)
}

// change makes the nth change of a worker: its blob, then all the rest in one transaction.
func (s *stores) change(ctx context.Context, worker int, n uint64) error {
	c := changeOf(worker, n)
	var digest blob.Digest
	if c.kind == deploy {
		pin, err := s.blobs.Put(ctx, bytes.NewReader(content(worker, n)), 1<<20)
		if err != nil {
			return err
		}
		defer pin.Release()
		digest = pin.Digest
	}
	return s.store.Update(ctx, func(tx *state.Tx) error {
		number := []byte(strconv.FormatUint(n, 10))
		if err := tx.Put(countKey(worker), number); err != nil {
			return err
		}
		if _, err := tx.Append(logName(worker), number); err != nil {
			return err
		}
		key, at := functionKey(worker, c.slot), time.Unix(int64(n), 0)
		switch c.kind {
		case deploy:
			sealed, err := s.keys.Seal([]byte(secret(worker, n)), place(worker, c.slot))
			if err != nil {
				return err
			}
			if err := tx.Put(place(worker, c.slot).Key, sealed); err != nil {
				return err
			}
			_, err = tx.Enqueue(queueName(worker), number, at)
			return errors.Join(err, tx.Put(key, []byte(functionValue(n, digest))), tx.SetTimer(key, at, number))
		case remove:
			if err := tx.Delete(key); errors.Is(err, state.ErrNotFound) {
				return nil
			} else if err != nil {
				return err
			}
			return errors.Join(tx.StopTimer(key), tx.Delete(place(worker, c.slot).Key))
		case consume:
			later := time.Unix(1<<40, 0)
			leased, err := tx.Lease(queueName(worker), later, later.Add(time.Minute), 1)
			if err != nil || len(leased) == 0 {
				return err
			}
			return tx.Finish(queueName(worker), leased[0].ID, leased[0].Token)
		case trim:
			return tx.Cut(logName(worker), cutAt(n))
		default:
			return tx.Put(largeKey(worker), []byte(largeValue(worker, n)))
		}
	})
}

// sweep removes the blobs that no function refers to.
func (s *stores) sweep(ctx context.Context) (blob.Swept, error) {
	return s.blobs.Sweep(ctx, -time.Hour, func(d blob.Digest) (wanted bool, err error) {
		err = s.store.View(ctx, func(r *state.Reader) error {
			list, err := r.List("fn/", "", workers*slots)
			for _, pair := range list {
				wanted = wanted || strings.HasSuffix(string(pair.Value), fmt.Sprintf(" %x", d))
			}
			return err
		})
		return wanted, err
	})
}

// group has writers make n updates each, as fast as they are acknowledged, and says when they
// are ready and when they are done.
func group(dir string, writers, n int) error {
	ctx := context.Background()
	s, err := open(ctx, dir, "")
	if err != nil {
		return err
	}
	say("ready")
	if _, err := fmt.Scanln(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for writer := range writers {
		g.Go(func() error {
			for i := range n {
				err := s.store.Update(ctx, func(tx *state.Tx) error {
					_, err := tx.Enqueue("events", bytes.Repeat([]byte{byte(writer)}, 1024), time.Unix(int64(i), 0))
					return err
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	say("done")
	_, err = fmt.Scanln()
	return err
}
