package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/lambda"
	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/blob"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// storeFolder is the folder of the store, below that of the control process. The blobs are
// beside it (package state/blob).
const storeFolder = "store"

// functions knows the functions of a store. It is the [API] of sandboxd.
type functions struct {
	http.Handler
	host    *Host
	deploy  *deployer
	service *lambda.Service

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
	blobs, err := f.openBlobs()
	if err != nil {
		return nil, err
	}
	f.deploy = &deployer{host: h, blobs: blobs}
	// The service ends with the functions, not with ctx: requests that run still need it.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	f.end = end
	architecture := map[string]string{"amd64": "x86_64", "arm64": "arm64"}[runtime.GOARCH]
	f.service, err = lambda.New(life, lambda.Config{
		Store: lambda.NewStore(store), Blobs: code{blobs}, Deployer: f.deploy, Sealer: sealer{h.Ring},
		Region: h.Config.Region, AccountID: h.Config.AccountID, Architecture: architecture,
		Runtimes: h.Config.Runtimes, Networks: h.Config.Networks,
		OnError: func(err error) { h.Log.WithError(err).Error("the Lambda API has failed") },
	})
	if err != nil {
		return nil, err
	}
	f.Handler = f.service
	f.ended.Go(func() { f.sweep(life, blobs) })
	return f, nil
}

// openStore opens the store, which verifies itself.
func (f *functions) openStore(ctx context.Context) (*state.Store, error) {
	folder := filepath.Join(f.host.Config.Folder, storeFolder)
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	store, err := sqlite.Open(ctx, sqlite.Options{Folder: folder})
	if err != nil {
		return nil, err
	}
	f.closers = append(f.closers, store.Close)
	for _, d := range store.Damage() {
		f.host.Log.WithField("damage", fmt.Sprint(d)).Error("the store is damaged: what is damaged is not served, and nothing is changed; see 'sandboxd restore'")
	}
	return store, nil
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
		Reserved: -1,
	}, nil
}

// Environment implements [API].
func (f *functions) Environment(ctx context.Context, revision uint64) (map[string]string, error) {
	env, err := f.service.Environment(ctx, revision)
	return env, faultOf(err)
}

// Verify implements [API].
func (f *functions) Verify(context.Context, message.Verify) (message.Verdict, error) {
	return message.Verdict{}, nil // no access key is known
}

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

// sealer encrypts environments. A row is named by its key in the store.
type sealer struct{ ring *seal.Ring }

func (s sealer) place(context string) seal.Place { return seal.Place{Table: "keys", Key: context} }

func (s sealer) Seal(context string, plain []byte) ([]byte, error) {
	return s.ring.Seal(plain, s.place(context))
}

func (s sealer) Open(context string, sealed []byte) ([]byte, error) {
	return s.ring.Open(sealed, s.place(context))
}
