// Package seal encrypts small secrets for storage: environments of functions and secrets of
// access keys.
//
// A [Ring] has the host keys. The first one seals; the others only open what was sealed
// before a rotation. A sealed value belongs to one [Place], the row that it is stored in,
// and opens nowhere else. The form of a sealed value is
//
//	version (1 byte, 1) | id of the host key (8) | nonce (12) | ciphertext | tag (16)
//
// It is AES-256-GCM. The encryption key of each table is derived from the host key by
// HKDF-SHA256. Version, id, table and key of the row are authenticated.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// KeySize is the size of a host key in bytes.
const KeySize = 32

const (
	version = 1
	idSize  = 8
	header  = 1 + idSize
)

var (
	// ErrDamaged says that a sealed value was changed, cut, or moved to another place.
	ErrDamaged = errors.New("the encrypted value is damaged")
	// ErrNoKey says that a value was sealed with a host key that is not in the ring.
	ErrNoKey = errors.New("the host key that encrypted the value is missing")
)

// Place is where a sealed value is stored.
type Place struct {
	Table, Key string
}

// Ring is a list of host keys. It does not change, and is safe for concurrent use.
type Ring struct {
	keys []hostKey
}

type hostKey struct {
	id     [idSize]byte
	secret []byte
}

// New makes a ring of host keys of [KeySize] bytes, which must differ. The first one seals.
func New(keys ...[]byte) (*Ring, error) {
	if len(keys) == 0 {
		return nil, errors.New("no host key")
	}
	r := &Ring{}
	for _, k := range keys {
		if len(k) != KeySize {
			return nil, fmt.Errorf("a host key has %d bytes, want %d", len(k), KeySize)
		}
		id, err := hkdf.Key(sha256.New, k, nil, "sandboxd host key id 1", idSize)
		if err != nil {
			return nil, fmt.Errorf("id of a host key: %w", err)
		}
		h := hostKey{[idSize]byte(id), append([]byte(nil), k...)}
		if r.find(h.id) != nil {
			return nil, fmt.Errorf("host key %x is there twice", id)
		}
		r.keys = append(r.keys, h)
	}
	return r, nil
}

// IDs names the host keys, without telling them.
func (r *Ring) IDs() []string {
	var ids []string
	for _, k := range r.keys {
		ids = append(ids, hex.EncodeToString(k.id[:]))
	}
	return ids
}

func (r *Ring) find(id [idSize]byte) *hostKey {
	for i := range r.keys {
		if r.keys[i].id == id {
			return &r.keys[i]
		}
	}
	return nil
}

// Seal encrypts a value for its place.
func (r *Ring) Seal(plain []byte, at Place) ([]byte, error) {
	k := &r.keys[0]
	aead, err := k.cipher(at.Table)
	if err != nil {
		return nil, err
	}
	sealed := make([]byte, 0, header+aead.Overhead()+len(plain))
	sealed = append(append(sealed, version), k.id[:]...)
	return aead.Seal(sealed, nil, plain, authenticated(sealed, at)), nil
}

// Open decrypts a value that [Ring.Seal] made for the same place. The error is [ErrDamaged]
// or [ErrNoKey]; nothing of a damaged value is returned.
func (r *Ring) Open(sealed []byte, at Place) ([]byte, error) {
	if len(sealed) < header {
		return nil, fmt.Errorf("%s of %s has %d bytes: %w", at.Key, at.Table, len(sealed), ErrDamaged)
	}
	if sealed[0] != version {
		return nil, fmt.Errorf("%s of %s is encrypted in format %d, this sandboxd knows %d: %w", at.Key, at.Table, sealed[0], version, ErrDamaged)
	}
	id := [idSize]byte(sealed[1:header])
	k := r.find(id)
	if k == nil {
		return nil, fmt.Errorf("%s of %s is encrypted with host key %x: %w", at.Key, at.Table, id, ErrNoKey)
	}
	aead, err := k.cipher(at.Table)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, sealed[header:], authenticated(sealed[:header], at))
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", at.Key, at.Table, ErrDamaged)
	}
	return plain, nil
}

// Reseal encrypts a value again if it was sealed with a host key other than the first, and
// reports whether it did. It returns sealed itself if not. It opens what it returns, so that
// no damaged value is taken for a good one.
func (r *Ring) Reseal(sealed []byte, at Place) (again []byte, changed bool, err error) {
	plain, err := r.Open(sealed, at)
	if err != nil {
		return nil, false, err
	}
	if [idSize]byte(sealed[1:header]) == r.keys[0].id {
		return sealed, false, nil
	}
	again, err = r.Seal(plain, at)
	return again, err == nil, err
}

// cipher is what encrypts the values of a table. It puts a random nonce before each.
func (k *hostKey) cipher(table string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.secret, nil, "sandboxd seal 1 "+table, KeySize)
	if err != nil {
		return nil, fmt.Errorf("key of table %s: %w", table, err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key of table %s: %w", table, err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("key of table %s: %w", table, err)
	}
	return aead, nil
}

// authenticated is what a value is bound to: its head and its place. The length of the
// table's name keeps apart places that have the same letters.
func authenticated(head []byte, at Place) []byte {
	b := binary.BigEndian.AppendUint32(append([]byte(nil), head[:header]...), uint32(len(at.Table)))
	return append(append(b, at.Table...), at.Key...)
}
