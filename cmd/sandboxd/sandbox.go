package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/trace"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/instance"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/pool"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/api"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/resolver"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/supervisor"
)

const (
	mbPerCPU = 1769 // ENV-32
	maxCPUs  = 6    // ENV-32
	maxPIDs  = 1024 // ENV-34
)

// factory makes the sandboxes of one function.
type factory struct {
	instance *instance.Instance
	leases   *instance.Leases
	engine   *runc.Engine
	log      *logrus.Logger
	hurry    <-chan struct{}

	name string         // first part of sandbox ids
	spec isolation.Spec // all but ID and IDBase
	life rapid.Config   // all but LogStream, Restore and OnState

	strict   bool                              // the runtime's paths are for the runtime alone
	longInit time.Duration                     // limit of a provisioned sandbox's initialization
	renew    func() (rapid.Credentials, error) // for a restore

	pool *pool.Pool[blank] // nil: every sandbox is made when it is needed

	quarantine *quarantine // of those that could not be removed
	traces     *coldStarts // nil without --trace-init

	mu   sync.Mutex
	live map[string]*sandbox
}

func newFactory(s *session, function *rootfs.Function, template string, hurry <-chan struct{}) *factory {
	life := lifeOf(s.o, function, s.sink())
	life.Function.Image = s.image
	return &factory{
		instance: s.instance, leases: s.leases, engine: s.engine, log: s.log, hurry: hurry,
		name:     idPrefix(s.o.functionName),
		spec:     specOf(s.o, function, template),
		life:     life,
		strict:   s.o.strict,
		longInit: longInit(s.o),
		renew:    func() (rapid.Credentials, error) { return renewedCredentials(s.o) },
		live:     map[string]*sandbox{},

		quarantine: newQuarantine(s.log),
		traces:     s.traces,
	}
}

// logStream names the log of a sandbox as Lambda does (ENV-04).
func logStream(id string) string {
	return time.Now().UTC().Format("2006/01/02/") + "[" + functionVersion + "]" + id
}

// specOf says what a sandbox of the function is made of.
func specOf(o *options, function *rootfs.Function, template string) isolation.Spec {
	spec := isolation.Spec{
		Hostname: "sandbox", // /etc/hosts inside knows it
		Limits: isolation.Limits{
			MemoryBytes: int64(o.memoryMB) << 20,
			CPU:         min(float64(o.memoryMB)/mbPerCPU, maxCPUs),
			PIDs:        maxPIDs,
		},
		Domains: []string{isolation.RuntimeDomain},
		Root:    isolation.Root{Dirs: function.Dirs},
		Tmp:     isolation.Tmp{Template: template},
		Seccomp: o.settings.seccomp,
		Network: networkOf(o),
	}
	if len(function.Extensions) > 0 && !function.ExtensionsDisabled {
		spec.Domains = append(spec.Domains, isolation.ExtensionDomain)
	}
	for _, l := range function.Links {
		spec.Root.Links = append(spec.Root.Links, isolation.Link(l))
	}
	for _, m := range function.Mounts {
		spec.Mounts = append(spec.Mounts, isolation.Mount(m))
	}
	return spec
}

// lifeOf says how a sandbox of the function lives.
func lifeOf(o *options, function *rootfs.Function, sink telemetry.Sink) rapid.Config {
	settings := rapid.DefaultSettings()
	settings.InitTimeout = o.settings.initTimeout
	settings.Linger = o.linger
	settings.InternalWindow = o.settings.shutdownInternal
	settings.ExternalWindow = o.settings.shutdownExternal
	settings.RuntimeShare = float64(o.settings.runtimeShare) / 100
	settings.BillInit = o.settings.billInit
	settings.Stream.Rate = int64(o.settings.streamRate) << 10
	settings.Descriptors = telemetry.Descriptors(o.logDescriptors)
	c := rapid.Config{
		Function: rapid.Function{
			Name: o.functionName, Version: functionVersion, ARN: functionARN(o), Handler: o.handler,
			Runtime: o.runtime, Region: o.settings.region, AccountID: o.settings.accountID,
			MemoryMB: o.memoryMB, Timeout: o.timeout, Env: o.env,
			LogFormat: telemetry.Format(o.logFormat), LogGroup: "/aws/lambda/" + o.functionName,
			LogLevel: o.settings.appLogLevel, SystemLogLevel: telemetry.Level(o.settings.systemLogLevel),
			Bootstrap:          rapid.Entry{Path: function.Bootstrap, Args: function.BootstrapArgs, Dir: function.WorkingDir},
			Extensions:         function.Extensions,
			ExtensionsDisabled: function.ExtensionsDisabled,
		},
		Settings:    settings,
		Credentials: o.settings.credentials(),
		Sink:        sink,
	}
	if o.managed > 0 {
		c.Initialization, c.MaxConcurrency = rapid.Managed, o.managed
		c.Settings.InitTimeout = longInit(o)
	}
	if o.snapStart {
		c.Initialization = rapid.SnapStart
		c.Settings.InitTimeout = longInit(o)
	}
	return c
}

// longInit is the limit of an initialization that no invocation waits for (LC-06).
func longInit(o *options) time.Duration {
	return max(o.settings.initTimeout, 130*time.Second, o.timeout)
}

// credentials are what the configuration file says.
func (s *settings) credentials() rapid.Credentials {
	return rapid.Credentials{AccessKeyID: s.accessKeyID, SecretAccessKey: s.secretAccessKey, SessionToken: s.sessToken}
}

// renewedCredentials are those that the configuration file says now.
func renewedCredentials(o *options) (rapid.Credentials, error) {
	if o.config == "" {
		return o.settings.credentials(), nil
	}
	fresh := newOptions()
	flags, settings := pflag.NewFlagSet("run", pflag.ContinueOnError), pflag.NewFlagSet("settings", pflag.ContinueOnError)
	fresh.addFlags(flags)
	fresh.addSettings(settings)
	if err := applyConfig(o.config, flags, settings); err != nil {
		return rapid.Credentials{}, err
	}
	return fresh.settings.credentials(), nil
}

// functionVersion is the only version that there is.
const functionVersion = "$LATEST"

// functionARN is the function's unqualified ARN.
func functionARN(o *options) string {
	return fmt.Sprintf("arn:aws:lambda:%s:%s:function:%s", o.settings.region, o.settings.accountID, o.functionName)
}

// sandbox joins the parts of one execution environment. It implements fleet.Sandbox.
type sandbox struct {
	id       string
	base     uint32 // of its lease
	box      *runc.Sandbox
	sup      *supervisor.Sandbox
	resolver *resolver.Resolver // nil without network egress
	life     *rapid.Sandbox
	factory  *factory

	end   context.CancelFunc // ends the life
	ready chan struct{}      // closed when it has initialized
	ended chan struct{}      // closed when the life and its API have ended
	err   error              // of the life; valid once ended
}

// make makes a sandbox and starts its life. What fails is rolled back.
func (f *factory) make(ctx context.Context) (fleet.Sandbox, error) { return f.start(ctx, f.life) }

// provision makes a sandbox that initializes before anybody needs it (LC-09).
func (f *factory) provision(ctx context.Context) (fleet.Sandbox, error) {
	cfg := f.life
	cfg.Initialization = rapid.Provisioned
	cfg.Settings.InitTimeout = f.longInit
	return f.start(ctx, cfg)
}

func (f *factory) start(ctx context.Context, cfg rapid.Config) (fleet.Sandbox, error) {
	ctx, coldStart := f.traces.begin(ctx)
	box, id, base, err := f.box(ctx)
	if err != nil {
		coldStart.End()
		return nil, err
	}
	coldStart.SetName("cold start of " + id)
	s := &sandbox{id: id, base: base, box: box, sup: supervisor.New(id, box), factory: f,
		ready: make(chan struct{}), ended: make(chan struct{})}
	s.resolver = newResolver(box, f.spec.Network.Policy)
	cfg.LogStream, cfg.APIAddr = logStream(id), box.Listener().Addr().String()
	if cfg.Initialization == rapid.SnapStart {
		cfg.Restore = func() (rapid.Restored, error) {
			c, err := f.renew()
			return rapid.Restored{Credentials: c, LogStream: logStream(id + "-1")}, err
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
		f.log.WithField("sandbox", id).WithField("state", st.String()).Debug("life cycle")
	}
	s.life = rapid.New(cfg, rapid.Supervise(s.sup))
	var lifeCtx context.Context
	lifeCtx, s.end = context.WithCancel(trace.ContextWithSpan(context.Background(), coldStart))
	go s.run(lifeCtx)
	f.mu.Lock()
	f.live[id] = s
	f.mu.Unlock()
	return s, nil
}

// find returns the live sandbox of that id, nil if there is none.
func (f *factory) find(id string) *sandbox {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live[id]
}

// run lives the sandbox's life and serves the Runtime API for as long as it lasts:
// the shutdown needs the API too.
func (s *sandbox) run(ctx context.Context) {
	defer close(s.ended)
	apiCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	limits := api.DefaultLimits()
	limits.Connections += 2 * s.factory.life.MaxConcurrency // of managed mode: a worker waits in one of its own
	var origin api.Origin
	if s.factory.strict {
		origin = s.origin
	}
	go func() { served <- api.Serve(apiCtx, s.life, s.sup.Listener(), limits, origin) }()
	named := make(chan error, 1)
	go func() { named <- s.serveLookups(apiCtx) }()
	s.err = s.life.Run(ctx)
	if errors.Is(s.err, rapid.ErrLost) { // the function's doing; whether it can be removed is another matter
		s.factory.log.WithField("sandbox", s.id).WithError(s.err).Warn("a sandbox is lost")
		s.err = nil
	}
	stop()
	s.err = errors.Join(s.err, <-served, <-named)
}

// origin says why a connection is not the runtime's. See api.Origin.
func (s *sandbox) origin(conn net.Conn) error {
	domain, err := s.sup.Domain(conn)
	switch {
	case err != nil:
		s.factory.log.WithError(err).Debug("a connection to the Runtime API of unknown origin")
		return errors.New("it is not known who made this connection")
	case domain != isolation.RuntimeDomain:
		return fmt.Errorf("this connection was made in the %s domain", domain)
	}
	return nil
}

// ID names the sandbox.
func (s *sandbox) ID() string { return s.id }

// State is where in its life the sandbox is.
func (s *sandbox) State() rapid.State { return s.life.State() }

// Invoke runs one invocation.
func (s *sandbox) Invoke(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
	return s.life.Invoke(ctx, inv)
}

// Ready is closed when the sandbox has initialized.
func (s *sandbox) Ready() <-chan struct{} { return s.ready }

// Ended is closed when the life has ended.
func (s *sandbox) Ended() <-chan struct{} { return s.ended }

// Close ends the life and removes the sandbox. When ctx ends or the user is in a
// hurry, the orderly shutdown is cut short by a kill. A sandbox that cannot be
// removed is quarantined: its ids are not used again.
func (s *sandbox) Close(ctx context.Context) error {
	s.end()
	var errs []error
	killed := true
	select {
	case <-s.ended:
		killed = false
	case <-s.factory.hurry:
		errs = append(errs, s.box.Kill())
	case <-ctx.Done():
		errs = append(errs, s.box.Kill(), fmt.Errorf("sandbox %s was killed: its shutdown took too long: %w", s.id, ctx.Err()))
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
	defer cancel()
	if err := s.remove(last); err != nil {
		errs = append(errs, s.factory.quarantine.admit(s.id, err, s.remove))
	}
	select {
	case <-s.ended: // also after a kill: nothing is left to wait for
		if !killed { // else its errors are those of the kill
			errs = append(errs, s.err)
		}
	case <-last.Done():
		errs = append(errs, fmt.Errorf("sandbox %s: its life does not end: %w", s.id, last.Err()))
	}
	s.factory.mu.Lock()
	delete(s.factory.live, s.id)
	s.factory.mu.Unlock()
	return errors.Join(errs...)
}

// remove removes the sandbox from the host and ends the lease of its ids.
func (s *sandbox) remove(ctx context.Context) error {
	if err := s.sup.Close(ctx); err != nil {
		return err
	}
	return s.factory.leases.Release(s.base)
}

// idPrefix turns a function's name into the first part of sandbox ids, which name
// files and cgroups.
func idPrefix(name string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return strings.Trim(name[:min(len(name), 31)], "-")
}

// sandboxID makes a new id: the prefix and eight random hexadecimal digits.
func sandboxID(prefix string) (string, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("sandbox id: %w", err)
	}
	return strings.TrimPrefix(prefix+"-", "-") + hex.EncodeToString(b[:]), nil
}
