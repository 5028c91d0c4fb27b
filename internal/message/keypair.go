package message

import "os"

// KeyPair is the certificate of the endpoint with its private key, both in PEM, as the operator's
// files have them.
type KeyPair struct {
	Number      uint64 // of the daemon's pairs, from 1 on
	Certificate []byte
	Key         []byte
}

// File returns an open file in memory with the pair. The caller closes the file.
func (k *KeyPair) File() (*os.File, error) { return writeConfig("key pair", k) }

// ReadKeyPair reads what [KeyPair.File] has written, and closes f.
func ReadKeyPair(f *os.File) (*KeyPair, error) { return readConfig[KeyPair]("key pair", f) }
