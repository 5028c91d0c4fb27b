package access

import (
	"errors"
	"io"
	"net/http"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/lambda"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
)

// Authenticate finds out who has signed a request to the API, as [lambda.Config] wants it. The
// control process does not rely on what the worker has checked. If the client has announced the
// hash of the body, or there is none, the signature is verified before the body is read.
// Otherwise that happens at the end of the body, where the error takes the place of io.EOF.
func (k *Keys) Authenticate(r *http.Request) (lambda.Caller, error) {
	s, err := sigv4.Parse(r, k.cfg.Now(), k.cfg.Scope)
	switch {
	case errors.Is(err, sigv4.ErrUnsigned) && k.cfg.Unsigned && r.Header.Get(message.UnsignedHeader) != "":
		return lambda.Caller{}, nil
	case err != nil:
		return lambda.Caller{}, refusal(err)
	case s.Token != "": // there are no temporary access keys
		return lambda.Caller{}, refusal(sigv4.ErrUnknownKey)
	}
	key, secret, err := k.active(r.Context(), s.AccessKeyID)
	if err != nil {
		return lambda.Caller{}, err
	}
	if key == nil {
		return lambda.Caller{}, refusal(sigv4.ErrUnknownKey)
	}
	derived := sigv4.DeriveKey(secret, s.Date, s.Region, s.Service)
	if s.Ready() && !s.Verify(derived) {
		return lambda.Caller{}, refusal(sigv4.ErrMismatch)
	}
	r.Body = &signedBody{Closer: r.Body, body: s.Body(r.Body), end: func() error {
		if !s.Verify(derived) {
			return sigv4.ErrMismatch
		}
		k.mark(key)
		return nil
	}}
	return lambda.Caller{Key: key.ID, Allowed: key.Allows}, nil
}

// signedBody is the body of a signed request.
type signedBody struct {
	io.Closer
	body io.Reader
	end  func() error // called once, at io.EOF
	err  error
}

// Read implements io.Reader.
func (b *signedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.body.Read(p)
	if err == io.EOF {
		if wrong := b.end(); wrong != nil {
			err = wrong
		}
	}
	b.err = refusal(err)
	return n, b.err
}

// refusal returns the answer of the API for an error of sigv4.
func refusal(err error) error {
	if e, ok := errors.AsType[*sigv4.Error](err); ok {
		return &lambda.Error{Status: e.Status, Type: e.Type, Message: e.Message}
	}
	return err
}
