package control

import (
	"context"
	"fmt"

	"github.com/sandboxd/sandboxd/daemon/control/operator"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/lambda"
	"github.com/sandboxd/sandboxd/state/blob"
)

// scheme returns the scheme of the URLs that clients get.
func scheme(c *message.ControlConfig) string {
	if c.TLS {
		return "https"
	}
	return "http"
}

// limitsOf returns the operator's limits.
func limitsOf(c *message.ControlConfig) lambda.Limits {
	l := c.Limits
	return lambda.Limits{Functions: l.Functions, CodeBytes: l.CodeBytes, Uploads: l.Uploads, Rate: l.Rate, Burst: l.Burst}
}

// room returns an error if the disk has less free than floor.
func room(blobs *blob.Store, floor int64) error {
	free, err := blobs.Free()
	if err != nil || free >= floor {
		return err
	}
	return fmt.Errorf("the disk of the server has %d MB free, less than the %d MB of free-space: nothing can be changed until its operator frees space or lowers that; functions can be read, deleted and invoked", free>>20, floor>>20)
}

// usage returns what operators are told of the limits.
func (f *functions) usage(ctx context.Context, blobs *blob.Store) (u operator.Usage, err error) {
	u.Functions, u.CodeBytes, err = f.service.Usage(ctx)
	if err != nil {
		return u, err
	}
	limits := f.service.Limits()
	u.MaxFunctions, u.MaxCodeBytes = limits.Functions, limits.CodeBytes
	u.DiskFloor = f.host.Config.FreeBytes
	u.DiskFree, err = blobs.Free()
	return u, err
}
