package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	_ "github.com/opencontainers/cgroups/devices" // without it libcontainer sets no device rules
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
)

// Library is the floor under sandboxd's creation of a sandbox: it creates containers with
// the library that sandboxd uses, in one process, runs the program in each and destroys
// them. They are those of `runc run`, or with least all is left out that can be: a
// container is three namespaces, a /proc, the program's files, and the smallest
// configuration.
func Library(ctx context.Context, o Options, least bool, workers int, d time.Duration) (Lives, error) {
	bundle, spec, err := makeBundle(ctx, o, false)
	if err != nil {
		return Lives{}, err
	}
	spec.Root.Path = filepath.Join(bundle, spec.Root.Path)
	if least {
		leastOf(spec)
	}
	state := filepath.Join(o.Dir, "state")
	return repeat(ctx, workers, d, func(_ context.Context, id string) (err error) {
		config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: id, Spec: spec})
		if err != nil {
			return err
		}
		c, err := libcontainer.Create(state, id, config)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Destroy()) }()
		p := &libcontainer.Process{Args: spec.Process.Args, Cwd: "/", Init: true, UID: int(spec.Process.User.UID), GID: int(spec.Process.User.GID)}
		if err := c.Run(p); err != nil {
			return err
		}
		status, err := p.Wait()
		if err != nil {
			return fmt.Errorf("%s: %v: %w", program, status, err)
		}
		return nil
	})
}
