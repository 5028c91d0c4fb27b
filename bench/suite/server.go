package suite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// Programs says where the programs are that take part.
type Programs struct {
	Sandboxd string
	Floor    string
	Function string // folder with the bootstrap of bench/function
	Init     string // the init handler
	Stage    string // command sandbox-stage
}

// Find says where the programs are when sandboxd is at one path and the others in
// one folder.
func Find(sandboxd, folder string) (Programs, error) {
	p := Programs{Sandboxd: sandboxd}
	for file, path := range map[string]*string{"floor": &p.Floor, "function": &p.Function, "sandbox-init": &p.Init, "sandbox-stage": &p.Stage} {
		*path = filepath.Join(folder, file)
	}
	for _, path := range []*string{&p.Sandboxd, &p.Floor, &p.Function, &p.Init, &p.Stage} {
		abs, err := filepath.Abs(*path)
		if err == nil {
			_, err = os.Stat(abs)
		}
		if err != nil {
			return p, fmt.Errorf("%w; 'make bench-programs' builds it", err)
		}
		*path = abs
	}
	return p, nil
}

// patience bounds every wait for a program of ours.
const patience = time.Minute

// server is a running program that serves an invoke endpoint.
type server struct {
	*testdaemon.Process
	name string
	url  *url.URL
	dir  string // of its own; holds log, and for sandboxd run and state
}

// startFloor runs the floor with as many instances of the function.
func (s *suite) startFloor(ctx context.Context, instances int, args ...string) (*server, error) {
	return s.start(ctx, "floor", s.cfg.Programs.Floor, func(addr, _ string) []string {
		return append(append([]string{}, args...), addr, fmt.Sprint(instances), filepath.Join(s.cfg.Programs.Function, "bootstrap"))
	})
}

// startSandboxd runs sandboxd with the benchmark's function.
func (s *suite) startSandboxd(ctx context.Context, args ...string) (*server, error) {
	return s.start(ctx, "sandboxd", s.cfg.Programs.Sandboxd, func(addr, dir string) []string {
		all := []string{"run", "--listen", addr, "--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(s.dir, "state"),
			"--memory", "1769", "--timeout", "60s", "--log-level", "warn"}
		return append(append(all, args...), s.cfg.Programs.Function)
	})
}

// start runs a program that is to listen at the address that args puts into its
// arguments, and waits until it does. Its folder is removed when it is stopped.
func (s *suite) start(ctx context.Context, name, program string, args func(addr, dir string) []string) (_ *server, err error) {
	dir, err := os.MkdirTemp(s.dir, name)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // sandbox users pass through
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args(addr, dir)...)
	cmd.Stdout, cmd.Stderr = log, log // a file: nobody needs CPU to read it meanwhile
	p := &server{Process: testdaemon.New(cmd), name: name, dir: dir}
	if p.url, err = load.Endpoint(addr); err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := p.Accepting(ctx, p.url.Host); err != nil {
		err = fmt.Errorf("%s does not serve: %w; its log:\n%s", name, err, p.log())
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

// freeAddr finds a port that nobody uses now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// log is what the program has printed.
func (p *server) log() string {
	b, err := os.ReadFile(filepath.Join(p.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4096):])
}

// stop ends the program in order and removes its folder. A server that is nil is
// stopped already.
func (p *server) stop() error {
	if p == nil {
		return nil
	}
	if err := p.Stop(patience); err != nil {
		return fmt.Errorf("stop %s: %w; its log:\n%s", p.name, err, p.log())
	}
	return os.RemoveAll(p.dir)
}

// sandbox is what `sandboxd ps` tells of one.
type sandbox struct {
	ID string `json:"id"`
}

// sandboxes lists those of a sandboxd.
func (s *suite) sandboxes(ctx context.Context, p *server) ([]sandbox, error) {
	out, err := s.command(ctx, p, "ps", "--output", "json")
	if err != nil {
		return nil, err
	}
	var list []sandbox
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("sandboxd ps: %w", err)
	}
	return list, nil
}

// inspect returns the isolation in force for one sandbox of a sandboxd, as `sandboxd
// inspect` shows it.
func (s *suite) inspect(ctx context.Context, p *server) (string, error) {
	list, err := s.sandboxes(ctx, p)
	if err != nil {
		return "", err
	}
	if len(list) == 0 {
		return "", errors.New("sandboxd ps lists no sandbox")
	}
	out, err := s.command(ctx, p, "inspect", list[0].ID)
	return string(out), err
}

// command runs another command of sandboxd on the daemon p.
func (s *suite) command(ctx context.Context, p *server, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, s.cfg.Programs.Sandboxd, append(args, "--run-dir", filepath.Join(p.dir, "run"))...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("sandboxd %v: %w: %s", args, err, out)
	}
	return out, nil
}
