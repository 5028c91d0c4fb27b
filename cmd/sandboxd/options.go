package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/runfolder"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// defaultStateDir keeps what outlives a daemon: extracted code packages and images.
const defaultStateDir = "/var/lib/sandboxd"

// maxRunDir leaves room for an instance and a socket in it: the kernel takes 107 bytes
// for a socket's path.
const maxRunDir = 80

// options are what `run` can be told. The zero value of a field is not always its
// default: see newOptions.
type options struct {
	code  string // DIR or ZIP; "" with an image
	image string // layout, archive or reference; "" with code

	functionName string
	handler      string
	runtime      string
	rootfs       string
	layers       []string
	env          map[string]string
	memoryMB     int
	timeout      time.Duration
	ephemeralMB  int
	concurrency  int // 0: what memory allows
	network      string
	policy       isolation.Policy // of network egress
	unsafeHost   bool             // network host is meant

	listen       string
	event        string // "" serves; else a file, or "-" for stdin
	config       string
	drainTimeout time.Duration

	logFormat      string
	logLevel       string
	logDescriptors string

	provisioned int // sandboxes that initialize before the first request
	snapStart   bool
	tenants     bool
	strict      bool // only the runtime may use its paths of the API
	managed     int  // invocations at once in a sandbox; 0: one, in classic mode

	pool      int // sandboxes kept ready ahead of need
	linger    time.Duration
	traceInit bool // print and keep the steps of cold starts
	stateDir  string
	runDir    string
	idBase    int

	settings settings
}

// settings are what only the configuration file can set.
type settings struct {
	region, accountID                       string
	accessKeyID, secretAccessKey, sessToken string
	initTimeout                             time.Duration // LC-06
	warmMemoryMB                            int           // that idle sandboxes may hold; 0 half of the host's
	idleTimeout                             time.Duration // until an idle sandbox is closed; 0 never
	shutdownExternal, shutdownInternal      time.Duration // LC-64
	runtimeShare                            int           // percent of the window, LC-61
	billInit                                bool          // LOG-25
	streamRate                              int           // KiB a second; 0 is unlimited (RT-71)
	range4, range6                          netip.Prefix  // of the sandboxes' addresses, with network egress
	appLogLevel, systemLogLevel             string        // ENV-11, LOG-41
	seccomp                                 string        // name of the seccomp profile
}

var (
	functionNameForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`) // INV-01
	regionForm       = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`)
	accountForm      = regexp.MustCompile(`^[0-9]{12}$`)
	anyForm          = regexp.MustCompile(`^[^\x00]*$`)
)

// rapidDefaults are the specification's values.
var rapidDefaults = rapid.DefaultSettings()

func newOptions() *options {
	return &options{
		functionName: "function",
		runtime:      "provided.al2023",
		rootfs:       "host",
		memoryMB:     128,
		timeout:      3 * time.Second,
		ephemeralMB:  512,
		network:      isolation.NetworkNone,

		listen:       "127.0.0.1:9000",
		drainTimeout: 30 * time.Second,

		logFormat:      "Text",
		logLevel:       "info",
		logDescriptors: "pipe",

		linger:   rapidDefaults.Linger,
		pool:     1,
		stateDir: defaultStateDir,
		runDir:   runfolder.Default,
		idBase:   subid.DefaultIDBase,

		settings: settings{
			region: "us-east-1", accountID: "123456789012",
			initTimeout:      rapidDefaults.InitTimeout,
			idleTimeout:      15 * time.Minute,
			shutdownExternal: rapidDefaults.ExternalWindow,
			shutdownInternal: rapidDefaults.InternalWindow,
			runtimeShare:     int(rapidDefaults.RuntimeShare * 100),
			billInit:         rapidDefaults.BillInit,
			systemLogLevel:   string(telemetry.LevelInfo),
			seccomp:          isolation.DefaultProfile,
			range4:           isolation.DefaultRange4,
			range6:           isolation.DefaultRange6,
		},
	}
}

// addFlags defines the flags of run.
func (o *options) addFlags(f *pflag.FlagSet) {
	f.Var(nameValue{&o.functionName, functionNameForm, "1 to 64 letters, digits, '-' and '_'"}, "function-name", "name that the endpoint serves besides 'function'")
	f.StringVar(&o.handler, "handler", o.handler, "the `HANDLER`, as the runtime expects it (_HANDLER)")
	f.StringVar(&o.runtime, "runtime", o.runtime, "the `RUNTIME`: provided.al2023, nodejs20.x, python3.11, java17, …")
	f.StringVar(&o.rootfs, "rootfs", o.rootfs, "base file system: host, or the `DIR` of a tree")
	f.StringVar(&o.image, "image", o.image, "container image instead of DIR or ZIP: an OCI `LAYOUT`, an archive, or a reference")
	f.Var(listValue{&o.layers, 5, "layers"}, "layer", "layer for /opt; repeatable, later ones win")
	f.Var(envValue{&o.env}, "env", "environment variable of the function; repeatable")
	f.Var(intValue{&o.memoryMB, 128, 10240, " MB"}, "memory", "memory in MB, 128 to 10240; CPU is in proportion, 1769 MB are one CPU")
	f.Var(durationValue{&o.timeout, time.Second, 900 * time.Second, true}, "timeout", "longest time of an invocation, 1s to 900s")
	f.Var(intValue{&o.ephemeralMB, 512, 10240, " MB"}, "ephemeral-storage", "size of /tmp in MB, 512 to 10240")
	f.Var(intValue{&o.concurrency, 1, 4094, ""}, "concurrency", "most sandboxes at once (default: what memory allows, at most 10)")
	f.Var(intValue{&o.provisioned, 0, 4094, ""}, "provisioned", "sandboxes to initialize before the first request, and to keep")
	flag(f, &o.snapStart, "snap-start", "stop each sandbox at its snapshot point, and restore it with its first invocation")
	f.Var(orZeroValue{intValue{&o.managed, 1, 1024, ""}}, "managed", "managed mode: how many invocations each sandbox runs at once")
	flag(f, &o.tenants, "tenant-isolation", "give each tenant, X-Amz-Tenant-Id, sandboxes of its own")
	flag(f, &o.strict, "strict", "keep extensions from the runtime's paths of the Runtime API")
	f.Var(choiceValue{&o.network, []string{isolation.NetworkNone, isolation.NetworkEgress, isolation.NetworkHost}}, "network", "network of the function: none is loopback only, egress is what --allow and --allow-name say, host is the host's own and unsafe")
	f.Var(ruleValue[isolation.Rule]{&o.policy.Allow, isolation.ParseRule, "CIDR[:PORT][/tcp|udp]"}, "allow", "addresses that the function may reach, IPv6 in brackets; repeatable")
	f.Var(ruleValue[isolation.NameRule]{&o.policy.Names, isolation.ParseNameRule, "NAME[:PORT][/tcp|udp]"}, "allow-name", "names that the function may look up, and reach at the public addresses found; *.example.com is all below it; repeatable")
	flag(f, &o.unsafeHost, "unsafe-host-network", "confirm --network host, which takes the network's isolation away")

	f.Var(addressValue{&o.listen}, "listen", "address of the invoke endpoint")
	f.StringVar(&o.event, "event", o.event, "invoke once with the event in `FILE` (- is standard input), print the response, and exit")
	f.StringVar(&o.config, "config", o.config, "YAML `FILE` with the same keys as the flags; flags win")
	f.Var(durationValue{&o.drainTimeout, 0, time.Hour, false}, "drain-timeout", "how long invocations may take to end after SIGTERM")

	f.Var(choiceValue{&o.logFormat, []string{"Text", "JSON"}}, "log-format", "form of all log lines: Text or JSON")
	f.Var(choiceValue{&o.logLevel, []string{"debug", "info", "warn", "error"}}, "log-level", "least level of the daemon's own messages")
	f.Var(choiceValue{&o.logDescriptors, []string{"pipe", "socket"}}, "log-descriptors", "what the function gets as stdout and stderr")

	f.Var(intValue{&o.pool, 0, 1000, ""}, "pool", "sandboxes to keep ready for cold starts, at least; more with demand; 0 keeps none")
	f.Var(durationValue{&o.linger, 0, 10 * time.Second, false}, "linger", "how long a sandbox stays unfrozen after an invocation")
	flag(f, &o.traceInit, "trace-init", "print the steps of every cold start with their times, and keep them as OpenTelemetry spans in "+traceFile+" below --state-dir")
	f.StringVar(&o.stateDir, "state-dir", o.stateDir, "`DIR` for extracted packages, kept between runs")
	f.StringVar(&o.runDir, "run-dir", o.runDir, "`DIR` for the running daemons")
	f.Var(intValue{&o.idBase, 0, 1<<32 - 1, ""}, "id-base", "first host id for sandboxes, a multiple of 65536")
}

// addSettings defines the keys that only the configuration file has.
func (o *options) addSettings(f *pflag.FlagSet) {
	s := &o.settings
	f.Var(nameValue{&s.region, regionForm, "a region such as us-east-1"}, "region", "AWS_REGION and the function's ARN")
	f.Var(nameValue{&s.accountID, accountForm, "12 digits"}, "account-id", "account in the function's ARN")
	f.Var(nameValue{&s.accessKeyID, anyForm, "text"}, "access-key-id", "AWS_ACCESS_KEY_ID of the function")
	f.Var(nameValue{&s.secretAccessKey, anyForm, "text"}, "secret-access-key", "AWS_SECRET_ACCESS_KEY of the function")
	f.Var(nameValue{&s.sessToken, anyForm, "text"}, "session-token", "AWS_SESSION_TOKEN of the function")
	f.Var(durationValue{&s.initTimeout, time.Second, 900 * time.Second, false}, "init-timeout", "longest time of an initialization of its own")
	f.Var(durationValue{&s.idleTimeout, 0, 24 * time.Hour, false}, "idle-timeout", "how long a sandbox may be idle before it is closed; 0 is for ever")
	f.Var(orZeroValue{intValue{&s.warmMemoryMB, 1, 1 << 30, " MB"}}, "warm-memory", "memory in MB that idle sandboxes may hold together; the longest idle ones are closed; 0 is half of the host's")
	f.Var(durationValue{&s.shutdownExternal, 0, time.Minute, false}, "shutdown-window", "time for the shutdown with external extensions")
	f.Var(durationValue{&s.shutdownInternal, 0, time.Minute, false}, "shutdown-window-internal", "time for the shutdown with internal extensions only")
	f.Var(intValue{&s.runtimeShare, 0, 100, " percent"}, "shutdown-runtime-share", "part of the window that the runtime may use")
	f.Var(boolValue{&s.billInit}, "bill-init", "count the initialization into the billed duration")
	f.Var(orZeroValue{intValue{&s.streamRate, 32, 64 << 10, " KiB/s"}}, "stream-rate", "speed of a streamed response after its first 6 MiB, in KiB/s; 0 is unlimited")
	f.Var(rangeValue{&s.range4, isolation.CheckRange4}, "egress-range", "private addresses for sandboxes with network egress")
	f.Var(rangeValue{&s.range6, isolation.CheckRange6}, "egress-range6", "the same for IPv6")
	f.Var(choiceValue{&s.appLogLevel, []string{"TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"}}, "application-log-level", "AWS_LAMBDA_LOG_LEVEL, by which the function's runtime filters what it logs")
	f.Var(choiceValue{&s.systemLogLevel, []string{"DEBUG", "INFO", "WARN"}}, "system-log-level", "least level of the platform's lines, if the format is JSON")
	f.Var(choiceValue{&s.seccomp, isolation.Profiles()}, "seccomp", "profile of system calls: default, or debug, which lets a function trace its own processes")
}

// flag defines a flag that takes no value on the command line.
func flag(f *pflag.FlagSet, b *bool, name, usage string) {
	f.Var(boolValue{b}, name, usage)
	f.Lookup(name).NoOptDefVal = "true"
}

// initialization checks that the ways to initialize go together.
func (o *options) initialization() error {
	switch {
	case o.snapStart && o.provisioned > 0: // LC-94
		return fmt.Errorf("--snap-start and --provisioned exclude each other: leave one of them out")
	case o.snapStart && o.image != "":
		return fmt.Errorf("--snap-start is not for container images: leave one of them out")
	case o.snapStart && o.ephemeralMB > 512:
		return fmt.Errorf("--snap-start allows 512 MB of --ephemeral-storage, not %d", o.ephemeralMB)
	case o.managed > 0 && (o.snapStart || o.tenants || o.provisioned > 0):
		return fmt.Errorf("--managed excludes --snap-start, --provisioned and --tenant-isolation: leave one of them out")
	case o.managed > 0 && o.logFormat != "JSON": // RT-66
		return fmt.Errorf("--managed logs in JSON only: add --log-format JSON")
	case o.concurrency > 0 && o.provisioned > o.concurrency:
		return fmt.Errorf("--provisioned %d is more than --concurrency %d allows", o.provisioned, o.concurrency)
	case o.event != "" && o.provisioned > 0:
		return fmt.Errorf("--provisioned has no meaning with --event, which invokes once")
	}
	return nil
}

// complete checks what no single value can know.
func (o *options) complete() error {
	if o.rootfs == "" || o.stateDir == "" || o.runDir == "" {
		return fmt.Errorf("--rootfs, --state-dir and --run-dir must not be empty")
	}
	if dir, err := filepath.Abs(o.runDir); err != nil || len(dir) > maxRunDir {
		return fmt.Errorf("--run-dir %s: at most %d bytes are allowed, for the sockets in it", o.runDir, maxRunDir)
	}
	if _, err := subid.NewPool(uint32(o.idBase), "/"); err != nil {
		return err
	}
	if err := o.initialization(); err != nil {
		return err
	}
	if err := o.networkFlags(); err != nil {
		return err
	}
	switch def := newOptions(); {
	case o.image == "" && o.code == "":
		return fmt.Errorf("run takes one DIR or ZIP, or --image; see 'sandboxd run --help'")
	case o.image == "":
		return nil
	case o.code != "":
		return fmt.Errorf("--image takes the place of DIR or ZIP: leave one of them out")
	case o.runtime != def.runtime || o.rootfs != def.rootfs:
		return fmt.Errorf("--runtime and --rootfs have no meaning with --image: an image brings its own")
	case o.handler != "":
		return fmt.Errorf("--handler has no meaning with --image: the image's CMD says it")
	}
	return nil
}
