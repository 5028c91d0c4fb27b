package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/isolation"
)

// controlPatience is how long the control process may take to exit when it is asked to.
const controlPatience = 10 * time.Second

// runControl starts the control process and handles its requests until it has exited.
func (s *services) runControl(ctx context.Context) error {
	ours, line, err := registry.Pair()
	if err != nil {
		return err
	}
	defer line.Close()
	config := registry.Config{
		Register: s.d.registrar.register,
		Forget:   func(n uint64) error { s.d.maker.revisions.forget(n); return nil },
		Connect:  s.d.connectWorker,
	}
	if s.cfg.Store != nil {
		config.DialStore = s.cfg.Store.dial
	}
	server, err := registry.NewServer(ours, config)
	if err != nil {
		return err
	}
	process, ended, err := s.startControl(line)
	if err != nil {
		return errors.Join(fmt.Errorf("start the control process: %w", err), server.Close())
	}
	line.Close() // only the control process has this end now: the server sees when it exits
	server.Require(func() error { return confine.Check(process.Pid) })
	over := make(chan struct{})
	go s.stopControl(ctx, server, process, over)
	s.control.Store(server)
	err = server.Serve(func() {
		s.control.Store(nil)
		_ = process.Kill()
	})
	status := <-ended
	close(over)
	if err != nil {
		return err
	}
	return status
}

// stopControl asks the control process to exit when ctx ends, and kills it if it does not in
// time. It returns when over is closed.
func (s *services) stopControl(ctx context.Context, server *registry.Server, process *os.Process, over <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-over:
		return
	}
	_ = server.Stop() // fails if it has exited, or does not read: then it is killed
	timer := time.NewTimer(controlPatience)
	defer timer.Stop()
	select {
	case <-timer.C:
		s.d.log.Error("the control process did not exit in time and is killed")
		_ = process.Kill()
	case <-over:
	}
}

// startControl starts the control process with its configuration. The channel receives the
// result of its Wait.
func (s *services) startControl(line *os.File) (*os.Process, <-chan error, error) {
	config := s.cfg.Control
	config.Instance, config.Folder = s.d.instance.ID(), s.folder.path
	config.Profiles, config.FreeBytes = isolation.Profiles(), s.cfg.FreeBytes
	s.starts.control++
	config.Start, config.FirstKey = s.starts.control, s.folder.keys.firstKey
	if s.cfg.Store != nil {
		database, err := s.cfg.Store.database()
		if err != nil {
			return nil, nil, err
		}
		config.Database = database
	}
	config.Runtimes, config.Networks, config.Folders, config.Roles = nil, nil, s.cfg.Folders, rolesOf(s.cfg.Roles)
	for _, r := range s.d.registrar.runtimes {
		config.Runtimes = append(config.Runtimes, r.Name())
	}
	for _, n := range s.cfg.Networks {
		config.Networks = append(config.Networks, n.Name)
	}
	file, err := config.File()
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	text, err := seal.ReadFile(s.folder.keys.hostKey) // at each start: it may have been rotated
	if err != nil {
		return nil, nil, err
	}
	hostKey, err := message.MemoryFile("host-keys", text)
	if err != nil {
		return nil, nil, err
	}
	defer hostKey.Close()
	commands, err := s.operators.commands.file()
	if err != nil {
		return nil, nil, err
	}
	defer commands.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	c := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{message.ControlCommand}, Env: workerEnv(), Dir: "/",
		Stdin: null, Stdout: s.std.Err, Stderr: s.std.Err, // it has nothing to say on standard output
		ExtraFiles: slices.Concat([]*os.File{line, file, hostKey, commands}, s.codeFolders), // from message.LineFD on
	}
	if err := failpoint.Share(c); err != nil {
		return nil, nil, err
	}
	ended, err := startConfined(s.d.log, c, s.folder.uid, confine.Needs{Folders: []*os.File{s.folder.dir}, Readable: s.codeFolders, Links: true})
	if err != nil {
		return nil, nil, err
	}
	return c.Process, ended, nil
}
