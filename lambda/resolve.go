package lambda

import (
	"context"
	"encoding/hex"

	"github.com/sandboxd/sandboxd/function"
)

// revision returns what a definition of a function is to the processes that run it.
func (s *Service) revision(rec *record, d *definition) Revision {
	r := Revision{
		ID:       function.ID{Epoch: s.cfg.Store.Epoch(), Number: d.Number},
		Version:  latest,
		ARN:      s.arn(rec.Name),
		Settings: s.settings(rec.Name, d),
		Role:     d.Role,
		ImageURI: d.Code.Resolved,
	}
	// The store has only digests of uploads; a damaged one is zero, which no file has.
	_, _ = hex.Decode(r.Code[:], []byte(d.Code.SHA256))
	if d.Image != nil {
		r.Image = &function.Image{Entrypoint: d.Image.EntryPoint, Cmd: d.Image.Command, WorkingDir: d.Image.WorkingDirectory}
	}
	return r
}

// Resolve returns the revision that requests to a function run now. Its errors are [*Error]
// where the client is to get them.
func (s *Service) Resolve(ctx context.Context, name, qualifier string) (Revision, error) {
	announced := s.rollout.announcedOf(name) // before the store is read: see Rollout
	rec, err := s.read(ctx, name)
	if err != nil {
		return Revision{}, err
	}
	if qualifier == "" {
		qualifier = latest
	}
	if rec == nil || qualifier != latest {
		return Revision{}, notFound(s.arn(name) + ":" + qualifier)
	}
	d := rec.Current
	if rec.Next != nil && rec.Next.Number == announced {
		d = rec.Next
	}
	if d == nil {
		return Revision{}, conflict("The operation cannot be performed at this time. The function is currently in the following state: %s", rec.State)
	}
	return s.revision(rec, d), nil
}

// Environment returns the variables of a revision that Resolve has returned.
func (s *Service) Environment(ctx context.Context, number uint64) (map[string]string, error) {
	var name string
	var sealed []byte
	found := false
	err := s.cfg.Store.View(ctx, func(tx Reader) error {
		var row revisionRow
		ok, err := get(tx, revisionKey(number), &row)
		if err != nil || !ok {
			return err
		}
		if name = row.Name; row.Replaced {
			sealed, found = row.Env, true
			return nil
		}
		rec, err := load(tx, name)
		if err != nil || rec == nil {
			return err
		}
		for _, d := range []*definition{rec.Current, rec.Next} {
			if d != nil && d.Number == number {
				sealed, found = d.Env, true
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, refuse("ResourceNotFoundException", "No function has the revision %d", number)
	case sealed == nil:
		return nil, nil
	}
	return s.openEnvironment(name, sealed)
}

// Code calls f with the digest of the code of every function.
func (s *Service) Code(ctx context.Context, f func(digest [32]byte)) error {
	const page = 1000
	for after := ""; ; {
		var entries []Entry
		err := s.cfg.Store.View(ctx, func(tx Reader) (err error) {
			entries, err = tx.List(functionKeys, after, page)
			return err
		})
		if err != nil {
			return err
		}
		for _, e := range entries {
			var rec record
			if err := decodeRow(e.Key, e.Value, &rec); err != nil {
				return err
			}
			for _, d := range []*definition{rec.Current, rec.Next} {
				if d != nil && d.Package == zipPackage {
					f(s.revision(&rec, d).Code)
				}
			}
			after = e.Key
		}
		if len(entries) < page {
			return nil
		}
	}
}
