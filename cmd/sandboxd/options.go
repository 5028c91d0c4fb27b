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
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// defaultStateDir keeps what outlives a daemon: extracted code packages and images.
const defaultStateDir = "/var/lib/sandboxd"

// maxRunDir leaves room for an instance and a socket in it: the kernel takes 107 bytes
// for a socket's path.
const maxRunDir = 80

// options are what `run` can be told. The zero value of a field is not always its
// default: see newOptions.
type options struct {
	function function.Settings
	source   daemon.Source

	policy     isolation.Policy // of network egress
	unsafeHost bool             // network host is meant

	listen       string
	event        string // "" serves; else a file, or "-" for stdin
	config       string
	drainTimeout time.Duration

	logLevel       string
	logDescriptors string

	strict    bool // only the runtime may use its paths of the API
	pool      int  // sandboxes kept ready ahead of need
	linger    time.Duration
	traceInit bool // print and keep the steps of cold starts
	stateDir  string
	runDir    string
	idBase    int

	settings settings
}

// settings are what only the configuration file can set, beside settings of the function.
type settings struct {
	region, accountID                  string
	credentials                        message.Credentials
	initTimeout                        time.Duration // LC-06
	warmMemoryMB                       int           // that idle sandboxes may hold; 0 half of the host's
	idleTimeout                        time.Duration // until an idle sandbox is closed; 0 never
	shutdownExternal, shutdownInternal time.Duration // LC-64
	runtimeShare                       int           // percent of the window, LC-61
	billInit                           bool          // LOG-25
	streamRate                         int           // KiB a second; 0 is unlimited (RT-71)
	range4, range6                     netip.Prefix  // of the sandboxes' addresses, with network egress
	unusedAge                          time.Duration // how long stays below stateDir what nothing uses; 0 for ever
	unusedMB                           int           // how much of it; 0 any amount
}

// retention says what the daemon keeps below its state folder that nothing uses.
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

// newOptions returns the defaults.
func newOptions() *options {
	life := rapid.DefaultSettings() // the specification's values
	return &options{
		function:     function.Defaults(),
		source:       daemon.Source{Base: rootfs.HostBase},
		listen:       "127.0.0.1:9000",
		drainTimeout: 30 * time.Second,

		logLevel:       "info",
		logDescriptors: "pipe",

		linger:   life.Linger,
		pool:     1,
		stateDir: defaultStateDir,
		runDir:   runfolder.Default,
		idBase:   subid.DefaultIDBase,

		settings: settings{
			region: "us-east-1", accountID: "123456789012",
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
	f.Var(cli.Text(&o.function.Name, function.NameForm, "1 to 64 letters, digits, '-' and '_'"), "function-name", "name that the endpoint serves besides 'function'")
	f.StringVar(&o.function.Handler, "handler", o.function.Handler, "the `HANDLER`, as the runtime expects it (_HANDLER)")
	f.StringVar(&o.function.Runtime, "runtime", o.function.Runtime, "the `RUNTIME`: provided.al2023, nodejs20.x, python3.11, java17, …")
	f.StringVar(&o.source.Base, "rootfs", o.source.Base, "base file system: host, or the `DIR` of a tree")
	f.StringVar(&o.source.Image, "image", o.source.Image, "container image instead of DIR or ZIP: an OCI `LAYOUT`, an archive, or a reference")
	f.Var(cli.Paths(&o.source.Layers, function.MaxLayers, "layers"), "layer", "layer for /opt; repeatable, later ones win")
	f.Var(envValue{&o.function.Env}, "env", "environment variable of the function; repeatable")
	f.Var(cli.Int(&o.function.MemoryMB, function.MinMemoryMB, function.MaxMemoryMB, " MB"), "memory", "memory in MB, 128 to 10240; CPU is in proportion, 1769 MB are one CPU")
	f.Var(cli.Seconds(&o.function.Timeout, function.MinTimeout, function.MaxTimeout), "timeout", "longest time of an invocation, 1s to 900s")
	f.Var(cli.Int(&o.function.EphemeralMB, function.MinEphemeralMB, function.MaxEphemeralMB, " MB"), "ephemeral-storage", "size of /tmp in MB, 512 to 10240")
	f.Var(cli.Int(&o.function.Concurrency, 1, function.MaxConcurrency, ""), "concurrency", "most sandboxes at once (default: what memory allows, at most 10)")
	f.Var(cli.Int(&o.function.Provisioned, 0, function.MaxConcurrency, ""), "provisioned", "sandboxes to initialize before the first request, and to keep")
	cli.Switch(f, &o.function.SnapStart, "snap-start", "stop each sandbox at its snapshot point, and restore it with its first invocation")
	f.Var(cli.IntOrZero(&o.function.Managed, 1, function.MaxManaged, ""), "managed", "managed mode: how many invocations each sandbox runs at once")
	cli.Switch(f, &o.function.TenantIsolation, "tenant-isolation", "give each tenant, X-Amz-Tenant-Id, sandboxes of its own")
	cli.Switch(f, &o.strict, "strict", "keep extensions from the runtime's paths of the Runtime API")
	f.Var(cli.Choice(&o.function.Network, isolation.NetworkNone, isolation.NetworkEgress, isolation.NetworkHost), "network", "network of the function: none is loopback only, egress is what --allow and --allow-name say, host is the host's own and unsafe")
	f.Var(cli.Parsed(&o.policy.Allow, isolation.ParseRule, maxNetworkRules, "CIDR[:PORT][/tcp|udp]"), "allow", "addresses that the function may reach, IPv6 in brackets; repeatable")
	f.Var(cli.Parsed(&o.policy.Names, isolation.ParseNameRule, maxNetworkRules, "NAME[:PORT][/tcp|udp]"), "allow-name", "names that the function may look up, and reach at the public addresses found; *.example.com is all below it; repeatable")
	cli.Switch(f, &o.unsafeHost, "unsafe-host-network", "confirm --network host, which takes the network's isolation away")

	f.Var(cli.Address(&o.listen), "listen", "address of the invoke endpoint")
	f.StringVar(&o.event, "event", o.event, "invoke once with the event in `FILE` (- is standard input), print the response, and exit")
	f.StringVar(&o.config, "config", o.config, "YAML `FILE` with the same keys as the flags; flags win")
	f.Var(cli.Duration(&o.drainTimeout, 0, time.Hour), "drain-timeout", "how long invocations may take to end after SIGTERM")

	f.Var(cli.Choice(&o.function.LogFormat, function.LogFormats...), "log-format", "form of all log lines: Text or JSON")
	f.Var(cli.Choice(&o.logLevel, "debug", "info", "warn", "error"), "log-level", "least level of the daemon's own messages")
	f.Var(cli.Choice(&o.logDescriptors, "pipe", "socket"), "log-descriptors", "what the function gets as stdout and stderr")

	f.Var(cli.Int(&o.pool, 0, 1000, ""), "pool", "sandboxes to keep ready for cold starts, at least; more with demand; 0 keeps none")
	f.Var(cli.Duration(&o.linger, 0, 10*time.Second), "linger", "how long a sandbox stays unfrozen after an invocation")
	cli.Switch(f, &o.traceInit, "trace-init", fmt.Sprintf("print the steps of every cold start with their times, and keep them as OpenTelemetry spans, up to %d MB, in %s below --state-dir", message.MaxTraceBytes>>20, message.TraceFile))
	f.StringVar(&o.stateDir, "state-dir", o.stateDir, "`DIR` for extracted packages and images, kept between runs; the settings unused-age and unused-size bound what nothing uses, and 'sandboxd prune' removes it at once")
	f.StringVar(&o.runDir, "run-dir", o.runDir, "`DIR` for the running daemons")
	f.Var(cli.Int(&o.idBase, 0, 1<<32-1, ""), "id-base", "first host id for sandboxes, a multiple of 65536")
}

// addSettings defines the keys that only the configuration file has.
func (o *options) addSettings(f *pflag.FlagSet) {
	s := &o.settings
	f.Var(cli.Text(&s.region, regionForm, "a region such as us-east-1"), "region", "AWS_REGION and the function's ARN")
	f.Var(cli.Text(&s.accountID, accountForm, "12 digits"), "account-id", "account in the function's ARN")
	f.Var(cli.Text(&s.credentials.AccessKeyID, anyForm, "text"), "access-key-id", "AWS_ACCESS_KEY_ID of the function")
	f.Var(cli.Text(&s.credentials.SecretAccessKey, anyForm, "text"), "secret-access-key", "AWS_SECRET_ACCESS_KEY of the function")
	f.Var(cli.Text(&s.credentials.SessionToken, anyForm, "text"), "session-token", "AWS_SESSION_TOKEN of the function")
	f.Var(cli.Duration(&s.initTimeout, time.Second, 900*time.Second), "init-timeout", "longest time of an initialization of its own")
	f.Var(cli.Duration(&s.idleTimeout, 0, 24*time.Hour), "idle-timeout", "how long a sandbox may be idle before it is closed; 0 is for ever")
	f.Var(cli.IntOrZero(&s.warmMemoryMB, 1, 1<<30, " MB"), "warm-memory", "memory in MB that idle sandboxes may hold together; the longest idle ones are closed; 0 is half of the host's")
	f.Var(cli.Duration(&s.shutdownExternal, 0, time.Minute), "shutdown-window", "time for the shutdown with external extensions")
	f.Var(cli.Duration(&s.shutdownInternal, 0, time.Minute), "shutdown-window-internal", "time for the shutdown with internal extensions only")
	f.Var(cli.Int(&s.runtimeShare, 0, 100, " percent"), "shutdown-runtime-share", "part of the window that the runtime may use")
	f.Var(cli.Bool(&s.billInit), "bill-init", "count the initialization into the billed duration")
	f.Var(cli.IntOrZero(&s.streamRate, 32, 64<<10, " KiB/s"), "stream-rate", "speed of a streamed response after its first 6 MiB, in KiB/s; 0 is unlimited")
	f.Var(rangeValue{&s.range4, isolation.CheckRange4}, "egress-range", "private addresses for sandboxes with network egress")
	f.Var(rangeValue{&s.range6, isolation.CheckRange6}, "egress-range6", "the same for IPv6")
	f.Var(cli.Choice(&o.function.ApplicationLogLevel, function.ApplicationLogLevels...), "application-log-level", "AWS_LAMBDA_LOG_LEVEL, by which the function's runtime filters what it logs")
	f.Var(cli.Choice(&o.function.SystemLogLevel, function.SystemLogLevels...), "system-log-level", "least level of the platform's lines, if the format is JSON")
	f.Var(cli.Choice(&o.function.Seccomp, isolation.Profiles()...), "seccomp", "profile of system calls: default, or debug, which lets a function trace its own processes")
	f.Var(cli.Duration(&s.unusedAge, 0, 10*365*24*time.Hour), "unused-age", "how long packages and images stay below --state-dir that no daemon uses; 0 is for ever")
	f.Var(cli.IntOrZero(&s.unusedMB, 1, 1<<30, " MB"), "unused-size", "disk in MB that they may take together, those used last stay; 0 is unlimited")
}

// complete checks what no single value can know.
func (o *options) complete() error {
	if o.source.Base == "" || o.stateDir == "" || o.runDir == "" {
		return fmt.Errorf("--rootfs, --state-dir and --run-dir must not be empty")
	}
	if dir, err := filepath.Abs(o.runDir); err != nil || len(dir) > maxRunDir {
		return fmt.Errorf("--run-dir %s: at most %d bytes are allowed, for the sockets in it", o.runDir, maxRunDir)
	}
	if _, err := subid.NewPool(uint32(o.idBase), "/"); err != nil {
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
		return fmt.Errorf("--provisioned has no meaning with --event, which invokes once")
	}
	if err := o.networkFlags(); err != nil {
		return err
	}
	return o.completeSource()
}

// completeSource checks that there is one source of code, and that the flags fit it.
func (o *options) completeSource() error {
	switch def := newOptions(); {
	case o.source.Image == "" && o.source.Code == "":
		return fmt.Errorf("run takes one DIR or ZIP, or --image; see 'sandboxd run --help'")
	case o.source.Image == "":
		return nil
	case o.source.Code != "":
		return fmt.Errorf("--image takes the place of DIR or ZIP: leave one of them out")
	case o.function.Runtime != def.function.Runtime || o.source.Base != def.source.Base:
		return fmt.Errorf("--runtime and --rootfs have no meaning with --image: an image brings its own")
	case o.function.Handler != "":
		return fmt.Errorf("--handler has no meaning with --image: the image's CMD says it")
	}
	return nil
}

// daemonConfig says what the daemon is, without its endpoint or event.
func (o *options) daemonConfig(host runc.Host) daemon.Config {
	s := &o.settings
	return daemon.Config{
		Host: host, StateDir: o.stateDir, Keep: s.retention(), RunDir: o.runDir, IDBase: uint32(o.idBase),
		Pool: o.pool, Networks: o.networks(),
		Worker: message.WorkerConfig{
			Event: o.event, LogLevel: o.logLevel, LogFormat: o.function.LogFormat, Descriptors: o.logDescriptors,
			Region: s.region, AccountID: s.accountID, Credentials: s.credentials,
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

// renewedCredentials are those that the configuration file says now.
func (o *options) renewedCredentials() (message.Credentials, error) {
	if o.config == "" {
		return o.settings.credentials, nil
	}
	fresh := newOptions()
	flags, settings := pflag.NewFlagSet("run", pflag.ContinueOnError), pflag.NewFlagSet("settings", pflag.ContinueOnError)
	fresh.addFlags(flags)
	fresh.addSettings(settings)
	if err := applyConfig(o.config, flags, settings); err != nil {
		return message.Credentials{}, err
	}
	c := fresh.settings.credentials
	if c == (message.Credentials{}) && c != o.settings.credentials {
		return c, fmt.Errorf("--config %s has no credentials any more: put them back", o.config)
	}
	return c, nil
}
