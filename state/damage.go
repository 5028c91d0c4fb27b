package state

import (
	"errors"
	"fmt"
	"strconv"
)

// DamageError is the error of a read that met damage. It is an [ErrDamaged].
type DamageError struct {
	Table string // keys, heads of logs, logs, queues, timers, or facts for the store's own
	Key   string // which row; "" if that cannot be told
}

func (e *DamageError) Error() string {
	if e.Key == "" {
		return "the store's " + e.Table + " are damaged: restore a backup"
	}
	return fmt.Sprintf("%s in the store's %s is damaged: restore a backup", quote(e.Key), e.Table)
}

// Is makes every DamageError an ErrDamaged.
func (e *DamageError) Is(target error) bool { return target == ErrDamaged }

// Damage is something in the store that is not as it was written.
type Damage struct {
	Table string // as in DamageError; "" if it concerns the whole store
	Key   string // which row; "" if that cannot be told
	What  string
}

func (d Damage) String() string {
	switch {
	case d.Table == "":
		return d.What
	case d.Key == "":
		return fmt.Sprintf("%s: %s", d.Table, d.What)
	}
	return fmt.Sprintf("%s in %s: %s", quote(d.Key), d.Table, d.What)
}

// quote shows a key, which may be any bytes.
func quote(key string) string {
	if len(key) > 200 {
		return strconv.Quote(key[:200]) + "…"
	}
	return strconv.Quote(key)
}

// maxDamage is how much damage is kept to be named.
const maxDamage = 100

// Damage returns what is known to be damaged. While there is any, the store is read-only:
// what is not damaged can be read, and an answer that might be wrong because of the damage
// is a [DamageError].
func (s *Store) Damage() []Damage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Damage(nil), s.damage...)
}

// note keeps damage that was found in table t.
func (s *Store) note(t table, d Damage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t >= 0 {
		s.doubted[t] = true
	} else {
		s.doubted = [tables]bool{true, true, true, true, true}
	}
	for _, known := range s.damage {
		if known == d {
			return
		}
	}
	if len(s.damage) < maxDamage {
		s.damage = append(s.damage, d)
	}
}

// noted keeps the damage that err tells of, and returns err.
func (s *Store) noted(err error) error {
	var d *DamageError
	if errors.As(err, &d) {
		t := facts
		for i := range table(tables) {
			if i.String() == d.Table {
				t = i
			}
		}
		s.note(t, Damage{d.Table, d.Key, "it is not what was written"})
	} else if errors.Is(err, ErrDamaged) {
		s.note(facts, Damage{What: err.Error()})
	}
	return err
}

// doubt says that rows of t may be missing, so that an answer which would have to know all
// of them cannot be given.
func (s *Store) doubt(t table) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doubted[t] {
		return &DamageError{Table: t.String()}
	}
	return nil
}
