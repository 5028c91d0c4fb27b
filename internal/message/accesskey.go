package message

import (
	"crypto/rand"
	"encoding/base32"
)

// AccessKey is an access key with its secret.
type AccessKey struct{ ID, Secret string }

// keyPrefix begins the ids of access keys. It tells them apart from those of AWS, which begin
// with AKIA, for people and for scanners that look for leaked ones.
const keyPrefix = "AKSD"

// NewAccessKey makes an access key, with an id of 20 characters and a secret of 40, as AWS's
// have.
func NewAccessKey() AccessKey { return AccessKey{keyPrefix + random(10), random(25)} }

// random returns n random bytes in letters and digits, 8 of them for each 5 bytes.
func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return base32.StdEncoding.EncodeToString(b)
}
