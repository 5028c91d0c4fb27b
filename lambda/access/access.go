// Package access keeps access keys in the store, verifies who has signed a request, and says
// what the holder of a key may do.
package access

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seal"
)

// Kind says what the holder of an access key may do.
type Kind string

const (
	// Admin keys may do everything.
	Admin Kind = "admin"
	// Invoke keys may do nothing but invoke functions.
	Invoke Kind = "invoke"
)

// Key is an access key as it is stored.
type Key struct {
	ID        string
	Secret    []byte `json:",omitempty"` // sealed, see Open; none if revoked
	Kind      Kind
	Functions []string  `json:",omitempty"` // of Invoke keys: patterns of names, with * and ?
	Created   time.Time // in UTC
	Revoked   time.Time `json:",omitzero"`
	Used      string    `json:",omitempty"` // the last day of use, such as 2026-12-01, in UTC
}

// table is the part of the store that access keys are in.
const table = "key"

// maxFunctions bounds the patterns of a key.
const maxFunctions = 100

// New makes an access key, and tells its secret, which nobody can read afterwards. Functions
// are for Invoke keys, which need at least one pattern; "*" is all.
func New(kind Kind, functions []string, now time.Time, ring *seal.Ring) (k Key, _ string, err error) {
	if err := Check(kind, functions); err != nil {
		return Key{}, "", err
	}
	made := message.NewAccessKey()
	k = Key{ID: made.ID, Kind: kind, Functions: slices.Clone(functions), Created: now.UTC()}
	k.Secret, err = ring.Seal([]byte(made.Secret), k.place())
	return k, made.Secret, err
}

// Check returns an error if there is no access key of that kind for these functions.
func Check(kind Kind, functions []string) error {
	switch {
	case kind != Admin && kind != Invoke:
		return fmt.Errorf("unknown kind of access key %q, use %s or %s", kind, Admin, Invoke)
	case kind == Admin && len(functions) > 0:
		return fmt.Errorf("an access key of kind %s may do everything; leave out the functions, or use %s", Admin, Invoke)
	case kind == Invoke && len(functions) == 0:
		return fmt.Errorf("an access key of kind %s needs the functions that it may invoke, such as *", Invoke)
	case len(functions) > maxFunctions:
		return fmt.Errorf("%d patterns of functions, of at most %d; use * or ? in them", len(functions), maxFunctions)
	}
	for _, f := range functions {
		if err := checkPattern(f); err != nil {
			return err
		}
	}
	return nil
}

func (k Key) place() seal.Place { return seal.Place{Table: table, Key: k.ID} }

// Open decrypts the secret.
func (k Key) Open(ring *seal.Ring) (string, error) {
	secret, err := ring.Open(k.Secret, k.place())
	return string(secret), err
}

// Reseal encrypts the secret with the first key of a ring, and reports whether it was not
// already.
func (k *Key) Reseal(ring *seal.Ring) (changed bool, err error) {
	sealed, changed, err := ring.Reseal(k.Secret, k.place())
	if err == nil {
		k.Secret = sealed
	}
	return changed, err
}

// Active reports whether the key was not revoked.
func (k Key) Active() bool { return k.Revoked.IsZero() }

// Allows reports whether the holder may perform an action, such as lambda:InvokeFunction, on
// the resource of an ARN. It is false for a key that was revoked.
func (k Key) Allows(action, arn string) bool {
	if !k.Active() {
		return false
	}
	switch k.Kind {
	case Admin:
		return true
	case Invoke:
		name, ok := functionOf(arn)
		return ok && invokes(action) && slices.ContainsFunc(k.Functions, func(pattern string) bool {
			match, err := path.Match(pattern, name)
			return match && err == nil
		})
	}
	return false
}

// invokes reports whether an action is one of those that invoke a function. The streaming
// operation needs lambda:InvokeFunction too.
func invokes(action string) bool {
	return action == "lambda:InvokeFunction" || action == "lambda:InvokeAsync" || action == "lambda:InvokeFunctionUrl"
}

// functionOf finds the name in the ARN of a function, a version or an alias, such as
// arn:aws:lambda:us-east-1:000000000000:function:NAME:1.
func functionOf(arn string) (string, bool) {
	parts := strings.Split(arn, ":")
	if len(parts) != 7 && len(parts) != 8 || parts[0] != "arn" || parts[2] != "lambda" || parts[5] != "function" {
		return "", false
	}
	return parts[6], checkName(parts[6], "") == nil
}

// checkPattern checks a pattern of names.
func checkPattern(pattern string) error { return checkName(pattern, "*?") }

var errName = errors.New("is no name of a function, which has up to 64 letters, digits, - and _, nor a pattern of names with * and ?")

func checkName(name, more string) error {
	wrong := strings.IndexFunc(name, func(c rune) bool {
		return c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && !strings.ContainsRune(more, c)
	})
	if name == "" || len(name) > 64 || wrong >= 0 {
		return fmt.Errorf("%.100q %w", name, errName)
	}
	return nil
}
