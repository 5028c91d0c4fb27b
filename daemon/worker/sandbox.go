package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.opentelemetry.io/otel/trace"

	"github.com/sandboxd/sandboxd/daemon/worker/logs"
	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/egress/dns"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/api"
	"github.com/sandboxd/sandboxd/supervisor"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// factory creates the sandboxes of one revision. Its methods are safe for concurrent use.
type factory struct {
	client  *privsep.Client
	log     *logrus.Logger
	forced  <-chan struct{} // closed when the daemon must stop at once
	starter starter

	rev      *function.Revision
	life     rapid.Config      // without LogStream, APIAddr, Restore and OnState
	network  isolation.Network // what the sandboxes may connect to
	strict   bool              // extensions may not use the runtime's paths
	longInit time.Duration     // limit of a provisioned sandbox's initialization

	traces *coldStarts  // nil without --trace-init
	env    *environment // nil if the revision has its variables
	logs   *logs.Logs   // nil if its lines go to standard error
	role   bool         // sandboxes have the credentials of a role, which the supervisor knows

	mu   sync.Mutex
	live map[string]*sandbox // by id
}

// newFactory returns the factory of a revision. With control its variables are there only
// while it has sandboxes.
func newFactory(w *worker, rev *function.Revision, credentials rapid.Credentials, forced <-chan struct{}, control control) *factory {
	life := lifeOf(w.config, rev)
	life.Credentials = credentials
	if w.logs == nil {
		life.Sink = newSink(w.stderr, life.Function.LogFormat)
	}
	f := &factory{
		client: w.client, log: w.log, forced: forced,
		rev: rev, life: life, network: w.config.Networks[rev.Network], strict: w.config.Strict, longInit: longInit(w.config, rev),
		traces: w.traces, logs: w.logs, live: map[string]*sandbox{},
	}
	if control != nil {
		f.env = newEnvironment(func(ctx context.Context) (map[string]string, error) {
			return control.environment(ctx, rev.ID.Number)
		})
	}
	return f
}

// renewCredentials requests the current credentials from the supervisor.
func renewCredentials(ctx context.Context, client *privsep.Client) (rapid.Credentials, error) {
	return credentialsOf(client.Renew(ctx))
}

// credentialsOf returns what the supervisor has sent as credentials.
func credentialsOf(list []string, err error) (c rapid.Credentials, _ error) {
	if err == nil && len(list) != 3 {
		err = fmt.Errorf("the supervisor sent %d credentials instead of 3", len(list))
	}
	if err != nil {
		return c, err
	}
	return rapid.Credentials{AccessKeyID: list[0], SecretAccessKey: list[1], SessionToken: list[2]}, nil
}

// sandbox joins the parts of one execution environment. It implements fleet.Sandbox.
type sandbox struct {
	id       string
	box      *privsep.Box
	sup      *supervisor.Sandbox
	resolver *dns.Resolver // nil without network egress
	life     *rapid.Sandbox
	factory  *factory
	log      *logs.Function // nil if its lines go to standard error

	credentials rapid.Credentials // of the role, that it began with

	end   context.CancelFunc // ends the life
	ready chan struct{}      // closed when it has initialized
	ended chan struct{}      // closed when the life and its API have ended
	err   error              // of the life; valid once ended is closed
}

// A starter creates a sandbox of a factory with a configuration, and starts its life.
type starter func(*factory, context.Context, rapid.Config) (fleet.Sandbox, error)

// make creates a sandbox and starts its life.
func (f *factory) make(ctx context.Context) (fleet.Sandbox, error) {
	return f.starter(f, ctx, f.life)
}

// provision creates a sandbox that initializes before its first invocation (LC-09).
func (f *factory) provision(ctx context.Context) (fleet.Sandbox, error) {
	cfg := f.life
	cfg.Initialization = rapid.Provisioned
	cfg.Settings.InitTimeout = f.longInit
	return f.starter(f, ctx, cfg)
}

// createTime bounds the creation of a sandbox, which takes some milliseconds, or seconds on a
// slow machine: a disk that hangs must not hold requests for ever.
const createTime = time.Minute

// create has the supervisor create a sandbox, and returns the credentials of the function's role
// if it has one.
func (f *factory) create(ctx context.Context) (box *privsep.Box, c rapid.Credentials, err error) {
	ctx, cancel := context.WithTimeout(ctx, createTime)
	defer cancel()
	if box, err = f.client.Create(ctx, f.rev.ID.Number); err != nil || !f.role {
		return box, c, err
	}
	if c, err = credentialsOf(box.Credentials(ctx)); err != nil {
		return nil, c, errors.Join(fmt.Errorf("credentials of the role: %w", err), box.Close(context.WithoutCancel(ctx)))
	}
	return box, c, nil
}

func (f *factory) start(ctx context.Context, cfg rapid.Config) (_ fleet.Sandbox, err error) {
	if cfg.Function.Env, err = f.env.hold(ctx, cfg.Function.Env); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.env.release()
		}
	}()
	ctx, coldStart := f.traces.begin(ctx)
	box, credentials, err := f.create(ctx)
	if err != nil {
		coldStart.End()
		return nil, err
	}
	id := box.ID()
	coldStart.SetName("cold start of " + id)
	s := &sandbox{id: id, box: box, sup: supervisor.New(id, box), factory: f,
		ready: make(chan struct{}), ended: make(chan struct{})}
	if udp, _ := box.Lookups(); udp != nil {
		s.resolver = dns.New(dns.Config{Match: f.network.Policy.Match, Open: box.Allow, Dial: f.client.Upstream})
	}
	if f.logs != nil {
		s.log = f.logs.Hold(f.rev.Name)
		cfg.Sink = &logSink{log: s.log, format: cfg.Function.LogFormat}
	}
	if f.role {
		s.credentials, cfg.Credentials = credentials, credentials
	}
	cfg.LogStream, cfg.APIAddr = newLogStream(f.rev), box.Listener().Addr().String()
	if cfg.Initialization == rapid.SnapStart {
		cfg.Restore = func(ctx context.Context) (rapid.Restored, error) {
			c, err := f.renewed(ctx, s)
			return rapid.Restored{Credentials: c, LogStream: newLogStream(f.rev)}, err
		}
	}
	initialized := sync.OnceFunc(func() { close(s.ready) })
	cfg.OnState = func(st rapid.State) {
		if st == rapid.Idle || st == rapid.Serving {
			initialized()
		}
		if st != rapid.Initializing {
			coldStart.End()
		}
		if f.log.IsLevelEnabled(logrus.DebugLevel) { // this runs twice for each invocation, and fields are expensive
			f.log.WithField("sandbox", id).WithField("state", st.String()).Debug("life cycle")
		}
	}
	cfg.OnHint = func(text string) { f.log.WithField("sandbox", id).Warn(text) }
	s.life = rapid.New(cfg, rapid.Supervise(s.sup))
	var lifeCtx context.Context
	lifeCtx, s.end = context.WithCancel(trace.ContextWithSpan(context.Background(), coldStart))
	go s.run(lifeCtx)
	f.mu.Lock()
	f.live[id] = s
	f.mu.Unlock()
	return s, nil
}

// find returns the live sandbox with that id, or nil.
func (f *factory) find(id string) *sandbox {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live[id]
}

// run runs the sandbox's life cycle, and serves the Runtime API until it has ended: the
// shutdown needs the API too.
func (s *sandbox) run(ctx context.Context) {
	defer close(s.ended)
	apiCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	limits := api.DefaultLimits()
	limits.Connections += 2 * s.factory.life.MaxConcurrency // in managed mode each worker of the runtime waits in a connection of its own
	var origin api.Origin
	if s.factory.strict {
		origin = s.origin
	}
	go func() { served <- api.Serve(apiCtx, s.life, s.sup.Listener(), limits, origin) }()
	resolved := make(chan error, 1)
	go func() { resolved <- s.serveLookups(apiCtx) }()
	s.err = s.life.Run(ctx)
	if errors.Is(s.err, rapid.ErrLost) { // caused by the function; it says nothing about the removal
		s.factory.log.WithField("sandbox", s.id).WithError(s.err).Warn("a sandbox can take no more invocations")
		s.err = nil
	}
	stop()
	s.err = errors.Join(s.err, <-served, <-resolved)
}

// serveLookups answers the sandbox's name lookups until ctx ends.
func (s *sandbox) serveLookups(ctx context.Context) error {
	if s.resolver == nil {
		return nil
	}
	udp, tcp := s.box.Lookups()
	return s.resolver.Serve(ctx, udp, tcp)
}

// origin returns an error if a connection was not made in the runtime's domain. It is an
// api.Origin.
func (s *sandbox) origin(ctx context.Context, conn net.Conn) error {
	domain, err := s.sup.Domain(ctx, conn)
	switch {
	case err != nil:
		s.factory.log.WithError(err).Debug("a connection to the Runtime API of unknown origin")
		return errors.New("it is not known who made this connection")
	case domain != isolation.RuntimeDomain:
		return fmt.Errorf("this connection was made in the %s domain", domain)
	}
	return nil
}

// ID returns the id of the sandbox.
func (s *sandbox) ID() string { return s.id }

// State returns the state of the sandbox's life cycle.
func (s *sandbox) State() rapid.State { return s.life.State() }

// Invoke runs one invocation.
func (s *sandbox) Invoke(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
	return s.life.Invoke(ctx, inv)
}

// Ready returns a channel that is closed when the sandbox has initialized.
func (s *sandbox) Ready() <-chan struct{} { return s.ready }

// Ended returns a channel that is closed when the life and its API have ended.
func (s *sandbox) Ended() <-chan struct{} { return s.ended }

// kill kills every process of the sandbox. It does not depend on any context of a caller.
func (s *sandbox) kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), teardownTime)
	defer cancel()
	return s.box.Kill(ctx)
}

// Close shuts the sandbox down and removes it. If ctx ends or a stop is forced before the
// shutdown is over, Close kills the sandbox's processes first.
func (s *sandbox) Close(ctx context.Context) error {
	s.end()
	var errs []error
	killed := true
	select {
	case <-s.ended:
		killed = false
	case <-s.factory.forced:
		errs = append(errs, s.kill())
	case <-ctx.Done():
		errs = append(errs, s.kill(), fmt.Errorf("sandbox %s was killed because its shutdown took too long: %w", s.id, ctx.Err()))
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
	defer cancel()
	errs = append(errs, s.sup.Close(last))
	select {
	case <-s.ended: // also after a kill, which leaves the life nothing to wait for
		if !killed { // else the kill caused its errors
			errs = append(errs, s.err)
		}
	case <-last.Done():
		errs = append(errs, fmt.Errorf("sandbox %s is removed, but its life cycle did not end: %w", s.id, last.Err()))
	}
	s.factory.mu.Lock()
	delete(s.factory.live, s.id)
	s.factory.mu.Unlock()
	s.factory.env.release()
	if s.log != nil {
		s.log.Release()
	}
	return errors.Join(errs...)
}
