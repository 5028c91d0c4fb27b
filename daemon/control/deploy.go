package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/lambda"
	"github.com/sandboxd/sandboxd/state/blob"
)

// deployer makes revisions known to root and to the worker. It implements lambda.Deployer.
type deployer struct {
	host  *Host
	blobs *blob.Store
}

// Register implements lambda.Deployer.
func (d *deployer) Register(ctx context.Context, rev lambda.Revision) error {
	_, err := d.register(ctx, rev)
	return err
}

// register registers a revision, and returns what root has found in its files. Errors that
// will not pass are a *lambda.CodeError.
func (d *deployer) register(ctx context.Context, rev lambda.Revision) (function.Program, error) {
	form, err := d.form(rev)
	if err != nil {
		return function.Program{}, err
	}
	program, err := d.host.Register(ctx, form, func(digest message.Digest) (*os.File, error) {
		return d.blobs.Verified(ctx, blob.Digest(digest))
	})
	return program, codeError(err)
}

// form returns the message that registers a revision with root.
func (d *deployer) form(rev lambda.Revision) (*message.Revision, error) {
	s, c := &rev.Settings, d.host.Config
	if rev.ImageURI != "" {
		return nil, unusable("container images cannot be run by this server")
	}
	runtime := slices.Index(c.Runtimes, s.Runtime)
	if runtime < 0 {
		return nil, unusable("this server does not have the runtime %s any more; it has %s", s.Runtime, strings.Join(c.Runtimes, ", "))
	}
	network := slices.Index(c.Networks, s.Network)
	if network < 0 {
		return nil, unusable("this server does not have the network %s any more; it has %s", s.Network, strings.Join(c.Networks, ", "))
	}
	profile := slices.Index(c.Profiles, s.Seccomp)
	if profile < 0 {
		return nil, unusable("this server does not have the seccomp profile %s", s.Seccomp)
	}
	role := slices.Index(c.Roles, rev.Role) + 1 // 0: one that the operator has not named has no credentials
	return &message.Revision{
		ID: rev.ID, MemoryMB: uint32(s.MemoryMB), TmpMB: uint32(s.EphemeralMB), MicroCPU: uint32(s.CPU() * 1e6), PIDs: function.MaxPIDs,
		Runtime: uint16(runtime), Profile: uint16(profile), Network: uint16(network), Role: uint16(role), Code: rev.Code,
	}, nil
}

func unusable(format string, args ...any) error {
	return &lambda.CodeError{Fault: lambda.UnusableCode, Detail: fmt.Sprintf(format, args...)}
}

// codeError returns err as a *lambda.CodeError if it says that the code cannot be used.
func codeError(err error) error {
	if errors.Is(err, syscall.ENOSPC) { // root keeps some of the disk free, too
		return noRoom()
	}
	for fault, kinds := range map[lambda.CodeFault][]error{
		lambda.NotAZip:      {message.ErrPackage},
		lambda.TooLarge:     {message.ErrTooLarge},
		lambda.DamagedCode:  {message.ErrDigest, blob.ErrDamaged, blob.ErrNotFound},
		lambda.UnusableCode: {message.ErrUnusable, message.ErrRevision},
	} {
		for _, kind := range kinds {
			if errors.Is(err, kind) {
				return &lambda.CodeError{Fault: fault, Detail: err.Error()}
			}
		}
	}
	return err
}

// Switch implements lambda.Deployer.
func (d *deployer) Switch(ctx context.Context, name string, number uint64, gone bool) error {
	return d.host.Switch(ctx, message.Switch{Name: name, Number: number, Gone: gone})
}

// Release implements lambda.Deployer.
func (d *deployer) Release(ctx context.Context, id function.ID) {
	if err := d.host.Forget(ctx, id.Number); err != nil && ctx.Err() == nil {
		d.host.Log.WithError(err).Debugf("revision %v could not be forgotten", id) // root makes room when it needs some
	}
}

// noRoom refuses what needs disk space that is not there now.
func noRoom() error {
	return &lambda.Error{Status: http.StatusServiceUnavailable, Type: "ServiceException", Message: "The disk of this server has no room for more code.", RetryAfter: 10}
}

// code keeps the code of functions as blobs. It implements lambda.Blobs.
type code struct{ blobs *blob.Store }

// maxCode bounds a blob in bytes. The service has limits of its own, which are lower.
const maxCode = 256 << 20

// Put implements lambda.Blobs.
func (c code) Put(ctx context.Context, r io.Reader) (lambda.Blob, error) {
	pin, err := c.blobs.Put(ctx, r, maxCode)
	if errors.Is(err, blob.ErrNoSpace) {
		return lambda.Blob{}, noRoom()
	}
	if err != nil {
		return lambda.Blob{}, err
	}
	return lambda.Blob{Digest: pin.Digest, Size: pin.Size, Release: pin.Release}, nil
}

// Open implements lambda.Blobs.
func (c code) Open(_ context.Context, digest [32]byte) (io.ReadCloser, int64, error) {
	size, err := c.blobs.Size(digest)
	if err != nil {
		return nil, 0, err
	}
	r, err := c.blobs.Open(digest)
	return r, size, err
}
