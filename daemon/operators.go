package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/internal/message"
)

// controlRun is one control process.
type controlRun struct {
	end      context.CancelFunc // asks it to exit
	replaced atomic.Bool        // it was asked to exit so that another one takes its place
	ended    chan struct{}      // closed when it has
}

// operatorSockets are what serve offers to operators: the socket that its control processes
// serve in turn, and the one that takes a new host key.
type operatorSockets struct {
	commands *heldSocket
	hostKey  *admin.FactServer

	run atomic.Pointer[controlRun] // the control process, nil while there is none
}

// openOperators opens the sockets of operators.
func (s *services) openOperators() (err error) {
	info := s.d.instance.Info()
	l, err := admin.ListenGroup(info.AdminSocket(), filepath.Dir(s.d.instance.Dir()), s.cfg.Group)
	if err != nil {
		return err
	}
	if s.operators.commands, err = holdSocket(l); err != nil {
		return err
	}
	hostKey, err := admin.Listen(info.HostKeySocket())
	if err != nil {
		s.operators.commands.close()
		return err
	}
	s.operators.hostKey = admin.ServeHostKey(hostKey, s.folder.keys.hostKey, s.replaceControl, func(err error) {
		s.d.log.WithError(err).Error("the supervisor's socket for the host key has failed: it cannot be rotated")
	})
	return nil
}

func (s *services) closeOperators() {
	s.operators.commands.close()
	s.operators.hostKey.Close()
}

// runControls runs control processes one after the other, until one ends that was not to be
// replaced.
func (s *services) runControls(ctx context.Context) error {
	for {
		run := &controlRun{ended: make(chan struct{})}
		var life context.Context
		life, run.end = context.WithCancel(ctx)
		s.operators.run.Store(run)
		err := s.runControl(life)
		s.operators.run.Store(nil)
		run.end()
		close(run.ended)
		if !run.replaced.Load() || ctx.Err() != nil {
			return err
		}
		if err != nil {
			s.d.log.WithError(err).Warn("the control process that was replaced has ended badly")
		}
	}
}

// replaceControl has another control process take the place of the one that runs, with the
// host key as it is now. It returns when that one has ended.
func (s *services) replaceControl(ctx context.Context) error {
	run := s.operators.run.Load()
	if run == nil {
		return fmt.Errorf("%w: it is being started again, with the new host key", message.ErrNoControl)
	}
	run.replaced.Store(true)
	run.end()
	select {
	case <-run.ended:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("the control process does not end"), ctx.Err())
	}
}
