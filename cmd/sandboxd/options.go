package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/runfolder"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// defaultStateDir is the default of --state-dir, for what outlives a daemon: extracted
// packages and images.
const defaultStateDir = "/var/lib/sandboxd"

// maxRunDir is the longest path of --run-dir in bytes. The path of a socket may have 107
// bytes (unix(7)), and the rest is for the instance's folder and the socket's name.
const maxRunDir = 80

// options holds the flags of `run` and the settings of its configuration file. Use
// newOptions for the defaults, which are not always zero values.
type options struct {
	function function.Settings
	source   daemon.Source

	policy     isolation.Policy // for --network egress
	unsafeHost bool             // --network host is allowed

	listen       string
	web          webOptions
	aws          awsOptions
	event        string // "" serves; else a file, or "-" for stdin
	config       string
	drainTimeout time.Duration

	logLevel       string
	logDescriptors string

	strict    bool // extensions may not use the runtime's paths of the Runtime API
	pool      int  // least number of prewarmed sandboxes; 0 keeps none
	linger    time.Duration
	traceInit bool // print and store the steps of cold starts
	stateDir  string
	runDir    string
	idBase    int

	settings settings
}

// settings holds the settings of the daemon, most of which only the configuration file can
// set.
type settings struct {
	region, accountID                  string
	credentials                        message.Credentials
	initTimeout                        time.Duration // LC-06
	warmMemoryMB                       int           // most memory of all idle sandboxes; 0 is half of the host's
	idleTimeout                        time.Duration // after which an idle sandbox is closed; 0 is never
	shutdownExternal, shutdownInternal time.Duration // LC-64
	runtimeShare                       int           // percent of the shutdown window (LC-61)
	billInit                           bool          // LOG-25
	streamRate                         int           // KiB a second; 0 is unlimited (RT-71)
	range4, range6                     netip.Prefix  // addresses of sandboxes with --network egress
	unusedAge                          time.Duration // how long unused packages stay in stateDir; 0 is for ever
	unusedMB                           int           // most disk space of unused packages; 0 is no limit
}

// retention returns how long, and how many, unused packages the store keeps.
func (s *settings) retention() store.Retention {
	keep := store.Retention{Age: s.unusedAge, Bytes: int64(s.unusedMB) << 20}
	if s.unusedAge == 0 {
		keep.Age = store.NoAge
	}
	if s.unusedMB == 0 {
		keep.Bytes = store.NoBytes
	}
	return keep
}

var (
	regionForm  = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`)
	accountForm = regexp.MustCompile(`^[0-9]{12}$`)
	anyForm     = regexp.MustCompile(`^[^\x00]*$`)
)

// newOptions returns options with their defaults.
func newOptions() *options {
	life := rapid.DefaultSettings() // the specification's values
	return &options{
		function:     function.Defaults(),
		source:       daemon.Source{Base: rootfs.HostBase},
		listen:       "127.0.0.1:9000",
		web:          webOptions{mode: string(invoke.Auto)},
		drainTimeout: 30 * time.Second,

		logLevel:       "info",
		logDescriptors: "pipe",

		linger:   life.Linger,
		pool:     1,
		stateDir: defaultStateDir,
		runDir:   runfolder.Default,
		idBase:   subid.DefaultIDBase,

		settings: settings{
			accountID:        "123456789012",
			initTimeout:      life.InitTimeout,
			idleTimeout:      15 * time.Minute,
			shutdownExternal: life.ExternalWindow,
			shutdownInternal: life.InternalWindow,
			runtimeShare:     int(life.RuntimeShare * 100),
			billInit:         life.BillInit,
			range4:           isolation.DefaultRange4,
			range6:           isolation.DefaultRange6,
			unusedAge:        7 * 24 * time.Hour, // a week's work
			unusedMB:         5 << 10,            // a tenth of a small server's disk, or half of the largest image (ENV-36)
		},
	}
}

// addFlags defines the flags of run.
func (o *options) addFlags(f *pflag.FlagSet) {
	f.Var(cli.Text(&o.function.Name, function.NameForm, "1 to 64 letters, digits, '-' and '_'"), "function-name", "name of the function; the endpoint also serves it as 'function'")
	f.StringVar(&o.function.Handler, "handler", o.function.Handler, "`HANDLER` of the function, in the form of its runtime (_HANDLER)")
	f.StringVar(&o.function.Runtime, "runtime", o.function.Runtime, "`RUNTIME` of the function: provided.al2023, nodejs20.x, python3.11, java17, …")
	f.StringVar(&o.source.Base, "rootfs", o.source.Base, "base file system: host, or a `DIR`")
	f.StringVar(&o.source.Image, "image", o.source.Image, "container image instead of DIR or ZIP: an OCI `LAYOUT`, an archive, or a reference; LAYOUT:TAG is one of several")
	f.Var(cli.Paths(&o.source.Layers, function.MaxLayers, "layers"), "layer", "layer for /opt; repeatable, later ones win")
	f.Var(envValue{&o.function.Env}, "env", "environment variable of the function; repeatable")
	o.addAWSFlags(f)
	f.Var(cli.Int(&o.function.MemoryMB, function.MinMemoryMB, function.MaxMemoryMB, " MB"), "memory", "memory in MB, 128 to 10240; CPU is in proportion, 1769 MB are one CPU")
	f.Var(cli.Seconds(&o.function.Timeout, function.MinTimeout, function.MaxTimeout), "timeout", "time limit of an invocation, 1s to 900s")
	f.Var(cli.Int(&o.function.EphemeralMB, function.MinEphemeralMB, function.MaxEphemeralMB, " MB"), "ephemeral-storage", "size of /tmp in MB, 512 to 10240")
	f.Var(cli.Int(&o.function.Concurrency, 1, function.MaxConcurrency, ""), "concurrency", "maximum number of sandboxes (default: as many as memory allows, up to 10)")
	f.Var(cli.Int(&o.function.Provisioned, 0, function.MaxConcurrency, ""), "provisioned", "number of sandboxes to initialize before the first request, and to keep")
	cli.Switch(f, &o.function.SnapStart, "snap-start", "stop each sandbox after its initialization, and restore it for its first invocation")
	f.Var(cli.IntOrZero(&o.function.Managed, 1, function.MaxManaged, ""), "managed", "managed mode: number of invocations that a sandbox runs at once")
	cli.Switch(f, &o.function.TenantIsolation, "tenant-isolation", "give each tenant (X-Amz-Tenant-Id) sandboxes of its own")
	cli.Switch(f, &o.strict, "strict", "do not let extensions call the runtime's paths of the Runtime API")
	f.Var(cli.Choice(&o.function.Network, isolation.NetworkNone, isolation.NetworkEgress, isolation.NetworkHost), "network", "network of the function: none (loopback only), egress (what --allow and --allow-name permit), or host (the network of the host; unsafe)")
	f.Var(cli.Parsed(&o.policy.Allow, isolation.ParseRule, maxNetworkRules, "CIDR[:PORT][/tcp|udp]"), "allow", "addresses that the function may connect to, IPv6 in brackets; repeatable")
	f.Var(cli.Parsed(&o.policy.Names, isolation.ParseNameRule, maxNetworkRules, "NAME[:PORT][/tcp|udp]"), "allow-name", "names that the function may look up and connect to, at their public addresses; *.example.com means all names below it; repeatable")
	cli.Switch(f, &o.unsafeHost, "unsafe-host-network", "allow --network host, which removes the isolation of the network")

	f.Var(cli.Address(&o.listen), "listen", "address of the invoke endpoint")
	o.web.addFlags(f)
	f.StringVar(&o.event, "event", o.event, "invoke once with the event in `FILE` (- is standard input), print the response, and exit")
	f.StringVar(&o.config, "config", o.config, "YAML `FILE` with the same keys as the flags; flags win")
	f.Var(cli.Duration(&o.drainTimeout, 0, time.Hour), "drain-timeout", "how long to wait for running invocations after SIGTERM")

	f.Var(cli.Choice(&o.function.LogFormat, function.LogFormats...), "log-format", "format of all log lines: Text or JSON")
	f.Var(cli.Choice(&o.logLevel, "debug", "info", "warn", "error"), "log-level", "lowest level of the daemon's own messages")
	f.Var(cli.Choice(&o.logDescriptors, "pipe", "socket"), "log-descriptors", "type of the function's stdout and stderr: pipe or socket")

	f.Var(cli.Int(&o.pool, 0, 1000, ""), "pool", "minimum number of sandboxes to create ahead of cold starts; grows with demand; 0 creates none")
	f.Var(cli.Duration(&o.linger, 0, 10*time.Second), "linger", "how long to wait after an invocation before the sandbox is frozen")
	cli.Switch(f, &o.traceInit, "trace-init", fmt.Sprintf("print the steps of every cold start with their times, and store them as OpenTelemetry spans, up to %d MB, in %s below --state-dir", message.MaxTraceBytes>>20, message.TraceFile))
	f.StringVar(&o.stateDir, "state-dir", o.stateDir, "`DIR` for extracted packages and images, kept between runs; the settings unused-age and unused-size limit the unused ones, and 'sandboxd prune' removes them at once")
	f.StringVar(&o.runDir, "run-dir", o.runDir, "`DIR` for the sockets and locks of running daemons")
	f.Var(cli.Int(&o.idBase, 0, 1<<32-1, ""), "id-base", "first host id for sandboxes, a multiple of 65536")
}

// addSettings defines the settings that only the configuration file has.
func (o *options) addSettings(f *pflag.FlagSet) {
	s := &o.settings
	f.Var(cli.Text(&s.accountID, accountForm, "12 digits"), "account-id", "account in the function's ARN")
	f.Var(cli.Duration(&s.initTimeout, time.Second, 900*time.Second), "init-timeout", "time limit of an initialization outside an invocation")
	f.Var(cli.Duration(&s.idleTimeout, 0, 24*time.Hour), "idle-timeout", "how long a sandbox may be idle before it is closed; 0 is no limit")
	f.Var(cli.IntOrZero(&s.warmMemoryMB, 1, 1<<30, " MB"), "warm-memory", "most memory in MB of all idle sandboxes; above it the longest idle ones are closed; 0 is half of the host's memory")
	f.Var(cli.Duration(&s.shutdownExternal, 0, time.Minute), "shutdown-window", "time limit of the shutdown with external extensions")
	f.Var(cli.Duration(&s.shutdownInternal, 0, time.Minute), "shutdown-window-internal", "time limit of the shutdown with internal extensions only")
	f.Var(cli.Int(&s.runtimeShare, 0, 100, " percent"), "shutdown-runtime-share", "part of the shutdown window that the runtime may use")
	f.Var(cli.Bool(&s.billInit), "bill-init", "include the initialization in the billed duration")
	f.Var(cli.IntOrZero(&s.streamRate, 32, 64<<10, " KiB/s"), "stream-rate", "rate limit of a streamed response after its first 6 MiB, in KiB/s; 0 is no limit")
	f.Var(rangeValue{&s.range4, isolation.CheckRange4}, "egress-range", "private IPv4 range for sandboxes with --network egress")
	f.Var(rangeValue{&s.range6, isolation.CheckRange6}, "egress-range6", "private IPv6 range for sandboxes with --network egress")
	f.Var(cli.Choice(&o.function.ApplicationLogLevel, function.ApplicationLogLevels...), "application-log-level", "AWS_LAMBDA_LOG_LEVEL: lowest level of what the function's runtime logs")
	f.Var(cli.Choice(&o.function.SystemLogLevel, function.SystemLogLevels...), "system-log-level", "lowest level of the platform's log lines, with --log-format JSON")
	f.Var(cli.Choice(&o.function.Seccomp, isolation.Profiles()...), "seccomp", "seccomp profile: default, or debug, which lets a function trace its own processes")
	f.Var(cli.Duration(&s.unusedAge, 0, 10*365*24*time.Hour), "unused-age", "how long unused packages and images stay below --state-dir; 0 is no limit")
	f.Var(cli.IntOrZero(&s.unusedMB, 1, 1<<30, " MB"), "unused-size", "most disk space in MB of unused packages and images; the least recently used go first; 0 is no limit")
}

// complete checks that the options are consistent with each other, and fills in what
// follows from them.
func (o *options) complete() error {
	if err := o.checkFolders(); err != nil {
		return err
	}
	o.function.Image = o.source.Image != ""
	if err := o.function.Validate(); err != nil {
		if bad, ok := errors.AsType[*function.Error](err); ok {
			return errors.New(bad.Text(func(setting string) string { return "--" + setting }))
		}
		return err
	}
	if o.event != "" && o.function.Provisioned > 0 {
		return fmt.Errorf("--provisioned has no effect with --event, which invokes once: leave one of them out")
	}
	if err := o.networkFlags(); err != nil {
		return err
	}
	if err := o.webFlags(); err != nil {
		return err
	}
	if err := o.completeCredentials(); err != nil {
		return err
	}
	return o.completeSource()
}

// checkFolders checks what daemons keep where, and with which ids.
func (o *options) checkFolders() error {
	if o.source.Base == "" || o.stateDir == "" || o.runDir == "" {
		return fmt.Errorf("--rootfs, --state-dir and --run-dir must not be empty")
	}
	if dir, err := filepath.Abs(o.runDir); err != nil || len(dir) > maxRunDir {
		return fmt.Errorf("--run-dir %s: the path of a socket would be too long; use a path of at most %d bytes", o.runDir, maxRunDir)
	}
	_, err := subid.NewPool(uint32(o.idBase), "/")
	return err
}

// completeSource checks that there is exactly one source of code, and that no flag
// contradicts it.
func (o *options) completeSource() error {
	switch def := newOptions(); {
	case o.source.Image == "" && o.source.Code == "":
		return fmt.Errorf("run takes one DIR or ZIP, or --image; see 'sandboxd run --help'")
	case o.source.Image == "":
		return nil
	case o.source.Code != "":
		return fmt.Errorf("--image replaces DIR or ZIP: leave one of them out")
	case o.function.Runtime != def.function.Runtime || o.source.Base != def.source.Base:
		return fmt.Errorf("--runtime and --rootfs have no effect with --image: the image contains its own; leave them out")
	case o.function.Handler != "":
		return fmt.Errorf("--handler has no effect with --image: the image's CMD names the handler; leave it out")
	}
	return nil
}

// daemonConfig returns the configuration of the daemon, without Listener and Event.
func (o *options) daemonConfig(host runc.Host) daemon.Config {
	s := &o.settings
	return daemon.Config{
		Host: host, StateDir: o.stateDir, Keep: s.retention(), RunDir: o.runDir, IDBase: uint32(o.idBase),
		Pool: o.pool, Networks: o.networks(),
		Worker: message.WorkerConfig{
			Event: o.event, LogLevel: o.logLevel, LogFormat: o.function.LogFormat, Descriptors: o.logDescriptors,
			Region: s.region, AccountID: s.accountID, Credentials: s.credentials, Renews: o.credentialsChange(), Web: o.web.config(),
			Life: message.Life{
				InitTimeout: s.initTimeout, Linger: o.linger,
				InternalWindow: s.shutdownInternal, ExternalWindow: s.shutdownExternal, RuntimeShare: float64(s.runtimeShare) / 100,
				BillInit: s.billInit, StreamRate: int64(s.streamRate) << 10,
			},
			Strict: o.strict, TraceInit: o.traceInit, WarmMemory: uint64(s.warmMemoryMB) << 20,
			IdleTimeout: s.idleTimeout, DrainTimeout: o.drainTimeout,
		},
		Renew: o.renewedCredentials,
	}
}
