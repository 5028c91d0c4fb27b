package suite

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/bench/engine"
	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/bench/result"
)

// Confined, behind the name of a peer, is the same peer with the sandboxes' seccomp
// profile and a tmpfs of the same size as its /tmp.
const Confined = "+confined"

// livesOf are the subjects of P6, and what the results call them.
var livesOf = map[string]string{
	"engine": result.Sandboxd, "runc": result.Runc, "crun": result.Crun,
	"runc" + Confined: result.RuncConfined, "crun" + Confined: result.CrunConfined,
	"library": result.Library, "least": result.Least,
}

// lives measures P6: how many sandboxes can live one after the other on both cores.
func (s *suite) lives(ctx context.Context) error {
	all := append([]string{"engine"}, s.cfg.Peers...)
	if s.cfg.Beside {
		for _, peer := range s.cfg.Peers {
			all = append(all, peer+Confined)
		}
		all = append(all, "library", "least")
	}
	for round := range s.rounds(9) {
		for i := range all {
			who := all[(i+round)%len(all)]
			var l engine.Lives
			if err := s.child(ctx, &l, "lives", who); err != nil {
				return err
			}
			s.results.Add(result.Lives, livesOf[who], result.PerSecond, l.Rate())
		}
	}
	return nil
}

// freeze measures P5.
func (s *suite) freeze(ctx context.Context) error {
	for range s.rounds(5) {
		var f engine.Freezes
		if err := s.child(ctx, &f, "freeze", "200"); err != nil {
			return err
		}
		s.results.Add(result.Freeze, result.Sandboxd, result.MS, load.Milliseconds(f.Freeze)...)
		s.results.Add(result.Thaw, result.Sandboxd, result.MS, load.Milliseconds(f.Thaw)...)
	}
	return nil
}

// child runs this program again, which makes the engine its own, and reads what it
// prints. It gets a mount namespace; in that of crun there is no v2 tree beside
// those of v1, which crun refuses.
func (s *suite) child(ctx context.Context, into any, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir := filepath.Join(s.dir, args[len(args)-1])
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	script := `exec "$@"`
	if strings.HasPrefix(args[len(args)-1], "crun") {
		script = `if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"`
	}
	p := s.cfg.Programs
	all := append([]string{"-m", "--", "sh", "-ec", script, "sh", self, args[0], "--dir", dir, "--init", p.Init, "--stage", p.Stage, "--function", p.Function}, args[1:]...)
	all = append([]string{"unshare"}, all...)
	if s.cgroups.NeedsScope() { // as the daemon would for itself
		all = append([]string{"systemd-run", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--"}, all...)
	}
	cmd := exec.CommandContext(ctx, all[0], all[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it has things to remove
	cmd.WaitDelay = patience
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("bench %v: %w: %s", args, err, stderr.Bytes())
	}
	return json.Unmarshal(stdout.Bytes(), into)
}
