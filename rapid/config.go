package rapid

import (
	"context"
	"net"
	"time"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

// Supervisor is what a life needs of the supervisor: the processes of one sandbox.
// [Supervise] makes one of a *supervisor.Sandbox, where the methods are described. Those
// without a context return at once.
type Supervisor interface {
	Configure(domain string, c supervisor.DomainConfig) error
	Start(ctx context.Context, domain string) error
	Exec(ctx context.Context, r supervisor.ExecRequest) (Process, error)
	Terminate(domain, name string) error
	Kill(ctx context.Context, domain, name string) error
	Stop(ctx context.Context, domain string) (isolation.Usage, error)
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
	Throttle(ctx context.Context, on bool) error
	MemoryPeak() (uint64, error)
	Lost() <-chan struct{}
	Dial(ctx context.Context, network, addr string) (net.Conn, error) // from inside the sandbox
}

// Process is a started process. Exit is valid once Done is closed.
type Process interface {
	Done() <-chan struct{}
	Exit() supervisor.Exit
}

// Supervise returns the Supervisor that s is.
func Supervise(s *supervisor.Sandbox) Supervisor { return supervised{s} }

type supervised struct{ *supervisor.Sandbox }

func (s supervised) Exec(ctx context.Context, r supervisor.ExecRequest) (Process, error) {
	p, err := s.Sandbox.Exec(ctx, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Entry is the program that a runtime begins with.
type Entry struct {
	Path string   // inside the sandbox; "" makes every initialization fail (FE-02)
	Args []string // after argv[0]
	Dir  string   // "" means /var/task (ENV-24)
}

// Image is what the configuration of a container image says of its program, for the
// log line of one that cannot be started (LOG-33).
type Image struct {
	Entrypoint, Cmd []string
	WorkingDir      string
}

// Function is what runs in a sandbox.
type Function struct {
	Name, Version, ARN, Handler string
	Runtime                     string // identifier, e.g. "nodejs20.x", "provided.al2023"
	Region, AccountID           string
	MemoryMB                    int
	Timeout                     time.Duration
	Env                         map[string]string // the customer's
	LogFormat                   telemetry.Format
	LogLevel                    string          // AWS_LAMBDA_LOG_LEVEL, "" if not configured
	SystemLogLevel              telemetry.Level // of platform records in JSON logs, "" for all (LOG-41)
	LogGroup                    string
	Bootstrap                   Entry
	Extensions                  []string // basenames in /opt/extensions, in listing order (EX-01)
	ExtensionsDisabled          bool     // EX-05
	Image                       *Image   // the code is a container image, whose variables are among Env; nil if it is not
}

// Credentials are what the processes get as AWS_ACCESS_KEY_ID and so on (ENV-02).
// Empty ones are left out.
type Credentials struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// Settings are the times and choices that the specification leaves open. Take
// [DefaultSettings] and change what differs: a zero is a value here, not a default.
type Settings struct {
	InitTimeout    time.Duration         // of an initialization with a phase of its own (LC-06)
	ExitGrace      time.Duration         // for what a process posted just before it ended (RT-51)
	Linger         time.Duration         // from Done to the freeze (LC-80)
	InternalWindow time.Duration         // of a shutdown with internal extensions only (LC-64)
	ExternalWindow time.Duration         // of a shutdown with an external extension (LC-64)
	RuntimeShare   float64               // of ExternalWindow, for the runtime (LC-61)
	KillWait       time.Duration         // for processes to be gone after SIGKILL (LC-63)
	FreezeTimeout  time.Duration         // for a freeze or thaw; then the sandbox is reset or given up
	BillInit       bool                  // LOG-25
	Stream         StreamLimits          // of streamed answers (RT-71)
	Descriptors    telemetry.Descriptors // stdout and stderr of the processes
	XRayAddress    string                // host:port of AWS_XRAY_DAEMON_ADDRESS (ENV-08)
}

// DefaultSettings returns the specification's values.
func DefaultSettings() Settings {
	return Settings{
		InitTimeout:    10 * time.Second,
		ExitGrace:      100 * time.Millisecond,
		Linger:         5 * time.Millisecond,
		InternalWindow: 500 * time.Millisecond,
		ExternalWindow: 2 * time.Second,
		RuntimeShare:   0.3,
		KillWait:       9 * time.Second,
		FreezeTimeout:  time.Second,
		BillInit:       true,
		Stream:         StreamLimits{Bytes: 200 << 20, Burst: 6 << 20},
		Descriptors:    telemetry.Pipes,
		XRayAddress:    "127.0.0.1:2000",
	}
}

// Initialization is the way in which a sandbox comes to take invocations, by the name
// that its processes and records see (ENV-07, TL-29). The zero value is OnDemand.
type Initialization string

// The ways there are.
const (
	OnDemand    Initialization = "on-demand"                // when an invocation needs it
	Provisioned Initialization = "provisioned-concurrency"  // before any invocation needs it (LC-09)
	SnapStart   Initialization = "snap-start"               // once, then restored for each use (section 4.7)
	Managed     Initialization = "lambda-managed-instances" // for many invocations at once (section 1.9)
)

// String returns the name, also of the zero value.
func (i Initialization) String() string {
	if i == "" {
		return string(OnDemand)
	}
	return string(i)
}

// Config is fixed for the life of a sandbox. It must not change after New.
type Config struct {
	Function       Function
	Initialization Initialization
	Settings       Settings
	Credentials    Credentials
	MaxConcurrency int            // invocations at once, of Managed; less than 1 means 1
	LogStream      string         // log stream name, also the instance id (TL-44)
	APIAddr        string         // host:port of the Runtime API as seen inside; "" means isolation.APIAddr
	Sink           telemetry.Sink // gets the log; nil discards it

	// Restore returns what a SnapStart sandbox gets anew when it is restored (LC-93); nil
	// changes nothing. It is called at most once, in a goroutine of its own, and must return
	// when its context ends: after 10 seconds (LC-91), or when the sandbox is shut down or
	// fails. Nobody waits for it then.
	Restore func(context.Context) (Restored, error)
	// Token is what processes of a SnapStart sandbox show to get their credentials
	// (RT-72); "" means a random one.
	Token string

	// OnState is called at each transition, one call at a time, and must not block. In
	// Idle and Cold the sandbox takes an invocation; Dead is the last.
	OnState func(State)
}
