package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"io"
	"sync"
	"time"
)

// DeriveKey derives the key that signs within a credential scope from a secret access key.
// The date is like 20261201.
func DeriveKey(secret, date, region, service string) []byte {
	key := []byte("AWS4" + secret)
	for _, part := range []string{date, region, service, terminator} {
		h := hmac.New(sha256.New, key)
		io.WriteString(h, part)
		key = h.Sum(nil)
	}
	return key
}

// Use says what a derived key is for: signatures of an access key within a scope, and, where
// the access key may not do everything, what it may do.
type Use struct {
	AccessKeyID, Date, Region, Service string
	Action, ARN                        string // or ""
}

// Use returns what a key that verifies s is for.
func (s *Signature) Use(action, arn string) Use {
	return Use{s.AccessKeyID, s.Date, s.Region, s.Service, action, arn}
}

// maxKeys is how many derived keys are remembered.
const maxKeys = 4096

// Keys remembers derived keys, at most 4096. The zero value is empty. It is safe for
// concurrent use.
type Keys struct {
	mu   sync.Mutex
	keys map[Use]derived
}

type derived struct {
	key   []byte
	until time.Time
}

// Get returns a key that has not expired, or nil. The caller must not change it.
func (k *Keys) Get(u Use, now time.Time) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.keys[u]; now.Before(d.until) {
		return d.key
	}
	return nil
}

// Put remembers a key until a time. If there are too many, those go that have expired, and
// else any other.
func (k *Keys) Put(u Use, key []byte, now, until time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		k.keys = map[Use]derived{}
	}
	if _, known := k.keys[u]; !known && len(k.keys) >= maxKeys {
		for other, d := range k.keys {
			if !now.Before(d.until) {
				delete(k.keys, other)
			}
		}
		for other := range k.keys {
			if len(k.keys) < maxKeys {
				break
			}
			delete(k.keys, other)
		}
	}
	k.keys[u] = derived{key, until}
}

// Forget forgets the keys of an access key, which was revoked.
func (k *Keys) Forget(accessKeyID string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for u := range k.keys {
		if u.AccessKeyID == accessKeyID {
			delete(k.keys, u)
		}
	}
}
