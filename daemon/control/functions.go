package control

import (
	"context"
	"errors"
	"net/http"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/daemon/control/operator"
	"github.com/sandboxd/sandboxd/daemon/control/secrets"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/lambda"
	"github.com/sandboxd/sandboxd/lambda/access"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/blob"
)

// functions knows the functions of a store. It is the [API] of sandboxd.
type functions struct {
	http.Handler
	host    *Host
	deploy  *deployer
	service *lambda.Service
	keys    *access.Keys
	answers *operator.Server // for operators

	end     context.CancelFunc
	ended   sync.WaitGroup // what works in the background
	closers []func() error // in reverse order
}

// OpenFunctions opens the functions in the control process's folder. It implements [Open].
func OpenFunctions(ctx context.Context, h *Host) (_ API, err error) {
	f := &functions{host: h}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	store, err := f.openStore(ctx)
	if err != nil {
		return nil, err
	}
	hostKeys := f.reseal(ctx, store)
	if err := f.openKeys(ctx, store); err != nil {
		return nil, err
	}
	blobs, err := f.openBlobs()
	if err != nil {
		return nil, err
	}
	audit := operator.NewAudit(h.Lines, h.Config.LogFormat == "JSON")
	f.deploy = &deployer{host: h, blobs: blobs}
	// The service ends with the functions, not with ctx: requests that run still need it.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	f.end = end
	architecture := map[string]string{"amd64": "x86_64", "arm64": "arm64"}[runtime.GOARCH]
	f.service, err = lambda.New(life, lambda.Config{
		Store: lambda.NewStore(store), Blobs: code{blobs}, Deployer: f.deploy, Sealer: secrets.Sealer{Ring: h.Ring},
		Region: h.Config.Region, AccountID: h.Config.AccountID, Architecture: architecture,
		Runtimes: h.Config.Runtimes, Networks: h.Config.Networks,
		Local:  h.Folders.Open,
		Scheme: scheme(h.Config), Limits: limitsOf(h.Config),
		Room: func() error { return room(blobs, h.Config.FreeBytes) },
		Authenticate: func(r *http.Request) (lambda.Caller, error) {
			if c, ok := operator.Caller(r); ok {
				return c, nil
			}
			return f.keys.Authenticate(r)
		},
		Audit: func(c lambda.Call) {
			audit.Call(c)
			f.answers.Count(c)
		},
		OnError: func(err error) { h.Log.WithError(err).Error("the Lambda API has failed") },
	})
	if err != nil {
		return nil, err
	}
	f.Handler = f.service
	f.answers = operator.New(operator.Config{
		Keys: f.keys, Store: store, HostKeys: hostKeys, Audit: audit, Log: h.Log,
		Start: h.Config.Start, SeriesLimit: h.Config.SeriesLimit,
		Numbers: h.Numbers, Forget: h.ForgetKey, Uploads: f.service.Uploads,
		Usage: func(ctx context.Context) (operator.Usage, error) { return f.usage(ctx, blobs) },
		API:   f.service, Known: f.known, Logs: (&logLines{host: h}).read,
		Endpoint: admin.Endpoint{URL: h.Config.Endpoint, Region: h.Config.Region, Unsigned: h.Config.Unsigned},
		Backup:   f.backup(store, blobs, hostKeys),
	})
	f.ended.Go(func() { f.sweep(life, blobs) })
	return f, nil
}

// reseal encrypts the secrets in the store again if the host key was rotated, and returns what
// operators are told of the host keys. Without success, the old keys are still needed; all else
// works.
func (f *functions) reseal(ctx context.Context, store *state.Store) admin.HostKeys {
	told := admin.HostKeys{IDs: f.host.Ring.IDs()}
	if len(told.IDs) == 1 {
		return told
	}
	r, err := secrets.Reseal(ctx, store, f.host.Ring)
	told.Unreadable = r.Unreadable
	if err == nil {
		err = r.Err
	}
	log := f.host.Log.WithField("host_key", told.IDs[0]).WithField("encrypted_again", r.Resealed)
	if err != nil {
		told.Error = err.Error()
		log.WithError(err).Error("not all secrets in the store are encrypted with the first host key; keep the others")
		return told
	}
	log.Info("all secrets in the store are encrypted with the first host key; the others are not needed any more")
	return told
}

// openKeys opens the access keys, and stores the first one.
func (f *functions) openKeys(ctx context.Context, store *state.Store) error {
	c := f.host.Config
	f.keys = access.NewKeys(access.Config{
		Store: store, Ring: f.host.Ring, Scope: sigv4.Scope{Region: c.Region, Service: "lambda"}, Unsigned: c.Unsigned,
		OnError: func(err error) { f.host.Log.WithError(err).Warn("access keys") },
	})
	f.closers = append(f.closers, func() error {
		f.keys.Close()
		return nil
	})
	if c.FirstKey.ID == "" {
		return nil
	}
	first := c.FirstKey
	c.FirstKey = message.AccessKey{}
	err := f.keys.Adopt(ctx, first.ID, first.Secret)
	if errors.Is(err, state.ErrReadOnly) || errors.Is(err, state.ErrNoSpace) {
		f.host.Log.WithError(err).WithField("key", first.ID).Warn("the first access key could not be stored; the next start tries again")
		return nil
	}
	return err
}

func (f *functions) openBlobs() (*blob.Store, error) {
	root, err := os.OpenRoot(f.host.Config.Folder)
	if err != nil {
		return nil, err
	}
	f.closers = append(f.closers, root.Close)
	blobs, err := blob.Open(root, blob.Options{Floor: f.host.Config.FreeBytes})
	if err != nil {
		return nil, err
	}
	f.closers = append(f.closers, blobs.Close)
	return blobs, nil
}

// Close ends the API.
func (f *functions) Close() error {
	if f.end != nil {
		f.end()
	}
	f.ended.Wait()
	var errs []error
	for i := len(f.closers) - 1; i >= 0; i-- {
		errs = append(errs, f.closers[i]())
	}
	return errors.Join(errs...)
}

// Resolve implements [API].
func (f *functions) Resolve(ctx context.Context, name, qualifier string) (message.Resolved, error) {
	rev, err := f.service.Resolve(ctx, name, qualifier)
	if err != nil {
		return message.Resolved{}, faultOf(err)
	}
	program, err := f.deploy.register(ctx, rev)
	if err != nil {
		return message.Resolved{}, faultOf(err)
	}
	program.Image = rev.Image
	return message.Resolved{
		Revision: function.Revision{ID: rev.ID, Version: rev.Version, ARN: rev.ARN, Settings: rev.Settings, Program: program},
		Reserved: -1, Credentials: slices.Contains(f.host.Config.Roles, rev.Role),
	}, nil
}

// known reports whether there is a function of that name.
func (f *functions) known(ctx context.Context, name string) (bool, error) {
	_, err := f.service.Resolve(ctx, name, "")
	if e, ok := errors.AsType[*lambda.Error](err); ok {
		return e.Type != "ResourceNotFoundException", nil
	}
	return err == nil, err
}

// Environment implements [API].
func (f *functions) Environment(ctx context.Context, revision uint64) (map[string]string, error) {
	env, err := f.service.Environment(ctx, revision)
	return env, faultOf(err)
}

// Verify implements [API].
func (f *functions) Verify(ctx context.Context, v message.Verify) (message.Verdict, error) {
	return f.keys.Verify(ctx, v)
}

// Operators implements [API].
func (f *functions) Operators() http.Handler { return f.answers }

// faultOf returns the answer of an invocation for an error of the service or of a
// registration. Errors that are no business of clients stay as they are.
func faultOf(err error) error {
	if e, ok := errors.AsType[*lambda.Error](err); ok {
		return &message.Fault{Status: e.Status, Type: e.Type, Message: e.Message}
	}
	bad, ok := errors.AsType[*lambda.CodeError](err)
	if !ok {
		return err
	}
	switch bad.Fault {
	case lambda.NotAZip, lambda.TooLarge:
		return &message.Fault{Status: http.StatusBadGateway, Type: "InvalidZipFileException", Message: "Lambda could not unzip the deployment package."}
	case lambda.UnusableCode:
		return &message.Fault{Status: http.StatusBadGateway, Type: "InvalidRuntimeException", Message: bad.Detail}
	}
	return err
}

// How often blobs are removed that no function has, and how old they are then: an upload is
// younger that is about to become a function's.
const (
	sweepEvery = time.Hour
	sweepGrace = 2 * time.Hour
)

// sweep removes blobs that no function has, until ctx ends.
func (f *functions) sweep(ctx context.Context, blobs *blob.Store) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		if err := f.sweepOnce(ctx, blobs); err != nil && ctx.Err() == nil {
			f.host.Log.WithError(err).Error("code that no function has could not be removed; it is tried again within the hour")
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (f *functions) sweepOnce(ctx context.Context, blobs *blob.Store) error {
	// Which digests functions have is read once. A blob that has become a function's since then
	// had a pin or was younger than the grace, but for one that was uploaded again: so the set
	// is read again before such a blob is removed.
	var used map[blob.Digest]bool
	read := func() error {
		used = map[blob.Digest]bool{}
		return f.service.Code(ctx, func(d [32]byte) { used[d] = true })
	}
	if err := read(); err != nil {
		return err
	}
	swept, err := blobs.Sweep(ctx, sweepGrace, func(d blob.Digest) (bool, error) {
		if used[d] {
			return true, nil
		}
		err := read()
		return used[d], err
	})
	if swept.Removed > 0 {
		f.host.Log.WithField("blobs", swept.Removed).WithField("bytes", swept.Bytes).Info("removed code that no function has")
	}
	return err
}
