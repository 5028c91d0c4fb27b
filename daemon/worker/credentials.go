package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// renewEvery is the interval between looks at the file of the operator's credentials.
const renewEvery = 5 * time.Second

// keepCredentials lets functions have the operator's current credentials, until ctx ends. A
// process has its credentials in its environment, where nothing can change them, so sandboxes
// with new ones replace those with the old ones. Credentials that cannot be read change
// nothing.
func (w *worker) keepCredentials(ctx context.Context) { w.keepRenewing(ctx, w.renewAll) }

// keepRenewing calls renew at every interval until ctx ends.
func (w *worker) keepRenewing(ctx context.Context, renew func(context.Context) error) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	problem := ""
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		err := renew(ctx)
		if err == nil {
			problem = ""
		} else if ctx.Err() == nil && err.Error() != problem { // once for each problem
			problem = err.Error()
			w.log.WithError(err).Error("the credentials could not be renewed; functions keep those that they have")
		}
	}
}

// renewAll puts all functions anew if the credentials have changed.
func (w *worker) renewAll(ctx context.Context) error {
	c, err := renewCredentials(ctx, w.client)
	if err != nil {
		return err
	}
	old := w.functions.credentials.Load()
	if c == *old {
		return nil
	}
	w.log.Info("the credentials have changed: new sandboxes replace the ones with the old credentials")
	return w.functions.renew(ctx, c, old)
}

// renew replaces the sandboxes of all functions by ones with the credentials c. If that
// fails, the next call with c tries again.
func (f *functions) renew(ctx context.Context, c rapid.Credentials, old *rapid.Credentials) error {
	f.credentials.Store(&c)
	var errs []error
	for key, s := range *f.serving.Load() {
		if err := f.swap(ctx, key, f.newServed(s.rev, s.reserved), s); err != nil {
			errs = append(errs, fmt.Errorf("function %s: %w", key, err))
		}
	}
	if len(errs) > 0 {
		f.credentials.Store(old)
	}
	return errors.Join(errs...)
}
