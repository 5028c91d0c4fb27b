// Package fakesup implements a supervisor in memory, for tests. Its processes are Go
// functions.
package fakesup

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/supervisor"
)

// Program is the code of a process. It returns the exit of the process. SIGKILL ends the
// context of p.
type Program func(p *Process) supervisor.Exit

// Supervisor runs programs. Set the fields before use; methods are safe for
// concurrent use.
type Supervisor struct {
	Programs map[string]Program // by the path of the request
	ExecErr  map[string]error   // by the path: what Exec fails with
	StartErr error
	StopErr  error
	QuotaErr error                                                             // what Throttle(true) fails with
	Peak     uint64                                                            // result of MemoryUsed
	Connect  func(ctx context.Context, network, addr string) (net.Conn, error) // implements Dial; nil refuses

	looks atomic.Int64
	mu    sync.Mutex
	live  map[string]*Process
	calls []string
	execs []supervisor.ExecRequest
	lost  chan struct{}
	once  sync.Once
	oom   atomic.Bool
}

// New returns a supervisor of programs.
func New(programs map[string]Program) *Supervisor {
	return &Supervisor{Programs: programs, ExecErr: map[string]error{}, live: map[string]*Process{}, lost: make(chan struct{})}
}

// Process is a running program.
type Process struct {
	Ctx            context.Context // ends with SIGKILL
	Term           <-chan struct{} // closed by SIGTERM
	Name           string
	Stdout, Stderr *os.File // nil if the request had none
	Extra          *os.File // the first extra file, descriptor 3

	cancel context.CancelFunc
	term   sync.Once
	termed chan struct{}
	done   chan struct{}
	exit   supervisor.Exit
}

// Done is closed when the program has returned.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how it ended.
func (p *Process) Exit() supervisor.Exit { return p.exit }

func (s *Supervisor) note(format string, args ...any) {
	s.mu.Lock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
	s.mu.Unlock()
}

// Calls returns the calls since the last call of Calls.
func (s *Supervisor) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.calls
	s.calls = nil
	return c
}

// Execs returns all requests to start a process.
func (s *Supervisor) Execs() []supervisor.ExecRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]supervisor.ExecRequest(nil), s.execs...)
}

// Configure implements rapid.Supervisor, as do the methods below.
func (s *Supervisor) Configure(domain string, _ supervisor.DomainConfig) error {
	s.note("configure %s", domain)
	return nil
}

func (s *Supervisor) Start(_ context.Context, domain string) error {
	s.note("start %s", domain)
	return s.StartErr
}

func (s *Supervisor) Launch(ctx context.Context, r supervisor.ExecRequest) (*Process, error) {
	s.note("exec %s", r.Name)
	if err := s.ExecErr[r.Path]; err != nil {
		return nil, err
	}
	program := s.Programs[r.Path]
	if program == nil {
		return nil, &supervisor.ExecError{Path: r.Path, Dir: r.Dir, Errno: syscall.ENOENT}
	}
	p := &Process{Name: r.Name, termed: make(chan struct{}), done: make(chan struct{})}
	p.Term = p.termed
	p.Ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.Stdout, p.Stderr = dup(r.Stdout), dup(r.Stderr)
	if len(r.ExtraFiles) > 0 {
		p.Extra = dup(r.ExtraFiles[0])
	}
	s.mu.Lock()
	s.execs = append(s.execs, r)
	s.live[r.Domain+"/"+r.Name] = p
	s.mu.Unlock()
	go func() {
		s.finish(r.Domain+"/"+r.Name, p, program(p))
		for _, f := range []*os.File{p.Stdout, p.Stderr, p.Extra} {
			if f != nil {
				_ = f.Close()
			}
		}
	}()
	return p, nil
}

func dup(f *os.File) *os.File {
	if f == nil {
		return nil
	}
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func (s *Supervisor) Terminate(domain, name string) error {
	s.note("terminate %s", name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.live[domain+"/"+name]; p != nil {
		p.term.Do(func() { close(p.termed) })
	}
	return nil
}

func (s *Supervisor) Kill(ctx context.Context, domain, name string) error {
	s.note("kill %s", name)
	return s.end(ctx, domain+"/"+name, false)
}

func (s *Supervisor) end(ctx context.Context, prefix string, oom bool) error {
	s.mu.Lock()
	ended := map[string]*Process{}
	for key, p := range s.live {
		if strings.HasPrefix(key, prefix) {
			ended[key] = p
		}
	}
	s.mu.Unlock()
	for key, p := range ended {
		s.finish(key, p, supervisor.Exit{Signal: syscall.SIGKILL, OOMKilled: oom})
	}
	return ctx.Err()
}

// finish ends a process, once. What its program does afterwards has no effect.
func (s *Supervisor) finish(key string, p *Process, exit supervisor.Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[key] != p {
		return
	}
	delete(s.live, key)
	p.exit = exit
	p.cancel()
	close(p.done)
}

func (s *Supervisor) Stop(ctx context.Context, domain string) (isolation.Usage, error) {
	s.note("stop %s", domain)
	if s.StopErr != nil {
		return isolation.Usage{}, s.StopErr
	}
	return isolation.Usage{}, s.end(ctx, domain+"/", false)
}

// KillForMemory kills all processes and loses the domains, as docs/decisions/0037 describes.
func (s *Supervisor) KillForMemory() {
	s.CountOOM()
	_ = s.end(context.Background(), "", true)
	s.Lose()
}

// Lose loses the domains. The exits of their processes are not reported.
func (s *Supervisor) Lose() { s.once.Do(func() { close(s.lost) }) }

func (s *Supervisor) Freeze(context.Context) error { s.note("freeze"); return nil }
func (s *Supervisor) Thaw(context.Context) error   { s.note("thaw"); return nil }

// MemoryUsed returns Peak.
func (s *Supervisor) MemoryUsed() (uint64, error) {
	s.looks.Add(1)
	return s.Peak, nil
}

// Usage returns an out-of-memory kill if KillForMemory or CountOOM was called.
func (s *Supervisor) Usage() (u isolation.Usage, err error) {
	if s.OutOfMemory() {
		u.OOMKills = 1
	}
	return u, nil
}

// Looks returns how often MemoryUsed was called.
func (s *Supervisor) Looks() int { return int(s.looks.Load()) }

func (s *Supervisor) Throttle(_ context.Context, on bool) error {
	s.note("throttle %v", on)
	if on {
		return s.QuotaErr
	}
	return nil
}

// Dial connects as Connect does.
func (s *Supervisor) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if s.Connect == nil {
		return nil, syscall.ECONNREFUSED
	}
	return s.Connect(ctx, network, addr)
}

func (s *Supervisor) Lost() <-chan struct{} { return s.lost }

// OutOfMemory reports whether KillForMemory or CountOOM was called.
func (s *Supervisor) OutOfMemory() bool { return s.oom.Load() }

// CountOOM has OutOfMemory return true, as after the kernel's kill of one process.
func (s *Supervisor) CountOOM() { s.oom.Store(true) }
