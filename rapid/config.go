package rapid

import (
	"context"
	"net"
	"time"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

// Supervisor controls the processes of one sandbox. [Supervise] returns the implementation
// that uses a *supervisor.Sandbox, which documents the methods. Methods without a context
// return at once.
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
	MemoryUsed() (uint64, error)
	Usage() (isolation.Usage, error)
	Lost() <-chan struct{}
	Dial(ctx context.Context, network, addr string) (net.Conn, error) // from inside the sandbox
	OutOfMemory() bool
}

// Process is a started process. Exit is valid once Done is closed.
type Process interface {
	Done() <-chan struct{}
	Exit() supervisor.Exit
}

// Supervise returns a Supervisor that uses s.
func Supervise(s *supervisor.Sandbox) Supervisor { return supervised{s} }

type supervised struct{ *supervisor.Sandbox }

func (s supervised) Exec(ctx context.Context, r supervisor.ExecRequest) (Process, error) {
	p, err := s.Sandbox.Exec(ctx, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Entry describes the program that starts a runtime.
type Entry struct {
	Path string   // inside the sandbox; "" makes every initialization fail (FE-02)
	Args []string // after argv[0]
	Dir  string   // "" means /var/task (ENV-24)
}

// Image is the part of a container image's configuration that describes its program, for the
// log line about a program that cannot be started (LOG-33).
type Image struct {
	Entrypoint, Cmd []string
	WorkingDir      string
}

// Function describes the function that runs in a sandbox.
type Function struct {
	Name, Version, ARN, Handler string
	Runtime                     string // identifier, e.g. "nodejs20.x", "provided.al2023"
	Region, AccountID           string
	MemoryMB                    int
	Timeout                     time.Duration
	Env                         map[string]string // the customer's variables
	LogFormat                   telemetry.Format
	LogLevel                    string          // AWS_LAMBDA_LOG_LEVEL; "" if not configured
	SystemLogLevel              telemetry.Level // lowest level of platform records in JSON logs; "" for all (LOG-41)
	LogGroup                    string
	Bootstrap                   Entry
	Extensions                  []string // basenames in /opt/extensions, in listing order (EX-01)
	ExtensionsDisabled          bool     // EX-05
	Locale                      string   // LANG, unless the code is a container image (ENV-10)
	Image                       *Image   // nil if the code is not a container image; its variables are in Env
}

// Credentials are the values of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
// AWS_SESSION_TOKEN for the processes (ENV-02). Empty ones are not set.
type Credentials struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// Settings are the time limits and choices that the specification leaves open. Start from
// [DefaultSettings]: a zero value here is a value, not a default.
type Settings struct {
	InitTimeout    time.Duration         // limit of an initialization with its own phase (LC-06)
	ExitGrace      time.Duration         // wait after an exit for what the process posted before it (RT-51)
	Linger         time.Duration         // wait after Done before the freeze (LC-80)
	InternalWindow time.Duration         // limit of a shutdown with internal extensions only (LC-64)
	ExternalWindow time.Duration         // limit of a shutdown with an external extension (LC-64)
	RuntimeShare   float64               // part of ExternalWindow for the runtime, 0 to 1 (LC-61)
	KillWait       time.Duration         // limit for processes to exit after SIGKILL (LC-63)
	FreezeTimeout  time.Duration         // limit of a freeze or thaw; after it the sandbox is reset or ended
	BillInit       bool                  // the billed duration includes the initialization (LOG-25)
	Stream         StreamLimits          // limits of streamed answers (RT-71)
	Descriptors    telemetry.Descriptors // type of stdout and stderr
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

// Initialization is the initialization type of a sandbox, as processes and records name it
// (ENV-07, TL-29). The zero value means OnDemand.
type Initialization string

// The initialization types.
const (
	OnDemand    Initialization = "on-demand"                // initialized when an invocation needs it
	Provisioned Initialization = "provisioned-concurrency"  // initialized ahead of invocations (LC-09)
	SnapStart   Initialization = "snap-start"               // initialized once, and restored for its first invocation (section 4.7)
	Managed     Initialization = "lambda-managed-instances" // runs many invocations at once (section 1.9)
)

// String returns the name; for the zero value it returns that of OnDemand.
func (i Initialization) String() string {
	if i == "" {
		return string(OnDemand)
	}
	return string(i)
}

// Config configures a sandbox. It must not be changed after New.
type Config struct {
	Function       Function
	Initialization Initialization
	Settings       Settings
	Credentials    Credentials
	MaxConcurrency int            // Managed: most concurrent invocations; less than 1 means 1
	LogStream      string         // log stream name, also the instance id (TL-44)
	APIAddr        string         // host:port of the Runtime API as seen inside; "" means isolation.APIAddr
	Sink           telemetry.Sink // receives the log; nil discards it

	// Restore returns the new credentials and log stream of a SnapStart sandbox that is being
	// restored (LC-93). If it is nil, they do not change. It is called at most once, in its own
	// goroutine. It must return when its context ends: after 10 seconds (LC-91), or when the
	// sandbox shuts down or fails. The sandbox does not wait for it then.
	Restore func(context.Context) (Restored, error)
	// Token is the token with which processes of a SnapStart sandbox get their credentials
	// (RT-72). "" means a random one.
	Token string
	// OnState, if not nil, is called at each transition, one call at a time. It must not
	// block. The last state is Dead.
	OnState func(State)
	// OnHint, if not nil, gets the likely cause of a process's exit, for the operator. It must
	// not block.
	OnHint func(text string)
}
