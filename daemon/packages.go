package daemon

import (
	"context"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/rootfs/store"
)

// lastCollection limits the collection at the end of the daemon, for which the operator
// waits. The next daemon continues it.
const lastCollection = 2 * time.Second

// PackagesDir returns the folder of the store below a state folder.
func PackagesDir(stateDir string) string { return filepath.Join(stateDir, "packages") }

// openPackages opens the store.
func (d *Daemon) openPackages() (*store.Store, error) {
	packages, err := store.Open(PackagesDir(d.cfg.StateDir))
	if err != nil {
		return nil, err
	}
	if err := packages.Leftover(); err != nil {
		d.log.WithError(err).Warn("could not remove a partial extraction of an earlier daemon; remove it by hand")
	}
	packages.Unzip = d.unpack.Zip
	return packages, nil
}

// startCollector starts the removal of unused entries from the store. Call it once, after
// Prepare, so that the first collection does not remove what the function uses.
func (d *Daemon) startCollector() {
	d.collector = d.packages.StartCollector(d.cfg.Keep, func(r store.Result, err error) {
		if n := len(r.Removed); n > 0 {
			d.log.WithFields(logrus.Fields{"entries": n, "bytes": store.Bytes(r.Removed)}).Info("removed packages that nothing uses")
		}
		if err != nil {
			d.log.WithError(err).Warn("some packages that nothing uses could not be removed")
		}
	})
}

// closeCollector collects a last time. By then the revisions have released their files.
func (d *Daemon) closeCollector(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastCollection)
	defer cancel()
	d.collector.Close(ctx)
}
