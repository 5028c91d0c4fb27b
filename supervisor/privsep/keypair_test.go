package privsep

import (
	"errors"
	"os"
	"testing"

	"github.com/sandboxd/sandboxd/internal/message"
)

// The worker gets a key pair if it has another one, and otherwise nothing.
func TestKeyPair(t *testing.T) {
	current := message.KeyPair{Number: 2, Certificate: []byte("certificate"), Key: []byte("key")}
	_, c := serveControl(t, Config{KeyPair: func(have uint64) (*os.File, error) {
		if have == current.Number {
			return nil, nil
		}
		return current.File()
	}})
	got, err := c.KeyPair(t.Context(), 1)
	if err != nil || got.Number != 2 || string(got.Certificate) != "certificate" || string(got.Key) != "key" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.KeyPair(t.Context(), 2); got != nil || err != nil {
		t.Errorf("the same: %+v, %v", got, err)
	}
	_, plain := serveControl(t, Config{})
	if got, err := plain.KeyPair(t.Context(), 1); got != nil || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without TLS: %+v, %v", got, err)
	}
}
