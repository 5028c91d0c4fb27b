package main

import (
	"cmp"
	"errors"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/internal/storeurl"
)

// passwordCredential is the name of the systemd credential with the password of --store.
const passwordCredential = "store-password"

// storeOptions are the flags that name a database for the store.
type storeOptions struct{ url, passwordFile, ca string }

func (o *storeOptions) add(f *pflag.FlagSet) {
	f.StringVar(&o.url, "store", "", "`URL` of a PostgreSQL database that keeps the store, postgres://USER@HOST/DATABASE without a password (default: a file below --state-dir)")
	f.StringVar(&o.passwordFile, "store-password-file", "", "`FILE` with the password of --store (default: the systemd credential "+passwordCredential+", if there is one)")
	f.StringVar(&o.ca, "store-ca", "", "`FILE` with the PEM certificates by which that of --store is verified (default: those of the host)")
}

// complete checks the flags.
func (o *storeOptions) complete() error {
	if o.url == "" {
		if o.passwordFile != "" || o.ca != "" {
			return errors.New("--store-password-file and --store-ca are for --store, which is missing")
		}
		return nil
	}
	u, err := storeurl.Parse(o.url)
	if err == nil {
		_, _, err = u.Address()
	}
	return err
}

// server returns the server of --store, nil without it.
func (o *storeOptions) server() (*daemon.StoreServer, error) {
	if o.url == "" {
		return nil, nil
	}
	return daemon.NewStoreServer(o.url, cmp.Or(o.passwordFile, credential(passwordCredential)), o.ca)
}
