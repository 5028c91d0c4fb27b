package worker

import (
	"context"
	"errors"
	"fmt"

	"github.com/sandboxd/sandboxd/rapid"
)

// keepRoles lets functions have the current credentials of their roles, as keepCredentials does
// for the operator's, until ctx ends.
func (w *worker) keepRoles(ctx context.Context) {
	w.keepRenewing(ctx, w.functions.renewRoles)
}

// renewRoles replaces the sandboxes of functions whose role has other credentials by now.
func (f *functions) renewRoles(ctx context.Context) error {
	var errs []error
	for key, s := range *f.serving.Load() {
		changed, err := s.factory.roleChanged(ctx)
		if err == nil && changed {
			f.w.log.WithField("function", key).Info("the credentials of the role have changed: new sandboxes replace the ones with the old credentials")
			next := f.newServed(s.rev, s.reserved)
			next.factory.role = true
			err = f.swap(ctx, key, next, s)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("function %s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}

// roleChanged reports whether a sandbox has other credentials than a new one would get.
func (f *factory) roleChanged(ctx context.Context) (bool, error) {
	if !f.role {
		return false, nil
	}
	f.mu.Lock()
	var any *sandbox
	old := map[rapid.Credentials]bool{}
	for _, s := range f.live {
		any = s
		old[s.credentials] = true
	}
	f.mu.Unlock()
	if any == nil { // nothing has credentials
		return false, nil
	}
	c, err := credentialsOf(any.box.Credentials(ctx))
	if err != nil {
		select {
		case <-any.ended: // and with it the right to ask
			return false, nil
		default:
			return false, err
		}
	}
	return len(old) > 1 || !old[c], nil
}

// renewed returns the current credentials for a sandbox that is restored (RT-72).
func (f *factory) renewed(ctx context.Context, s *sandbox) (rapid.Credentials, error) {
	if !f.role {
		return renewCredentials(ctx, f.client)
	}
	c, err := credentialsOf(s.box.Credentials(ctx))
	if err == nil {
		f.mu.Lock()
		s.credentials = c
		f.mu.Unlock()
	}
	return c, err
}
