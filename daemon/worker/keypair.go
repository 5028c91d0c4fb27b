package worker

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
)

// certificates has the configuration of the endpoint's TLS for the connections to come.
type certificates struct {
	config atomic.Pointer[tls.Config]
	number uint64 // of the pair in config
}

// newCertificates returns certificates with a first pair.
func newCertificates(pair *message.KeyPair) (*certificates, error) {
	c := &certificates{}
	return c, c.use(pair)
}

// use has the connections to come use a pair. Sessions of earlier ones are not resumed.
func (c *certificates) use(pair *message.KeyPair) error {
	certificate, err := tls.X509KeyPair(pair.Certificate, pair.Key)
	if err != nil {
		return fmt.Errorf("the key pair %d of the endpoint: %w", pair.Number, err)
	}
	c.config.Store(invoke.TLSConfig(certificate))
	c.number = pair.Number
	return nil
}

// keep asks for newer pairs with ask until ctx ends. onError gets each problem once.
func (c *certificates) keep(ctx context.Context, ask func(context.Context, uint64) (*message.KeyPair, error), onError func(error)) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	problem := ""
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		pair, err := ask(ctx, c.number)
		if err == nil && pair != nil {
			err = c.use(pair)
		}
		switch {
		case err == nil:
			problem = ""
		case ctx.Err() == nil && err.Error() != problem:
			problem = err.Error()
			onError(err)
		}
	}
}
