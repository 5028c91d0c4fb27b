package message

import (
	"encoding/gob"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/isolation"
)

// WorkerCommand is the name, argv[0], under which the binary is the worker.
const WorkerCommand = "sandboxd-worker"

// The descriptors that the worker begins with, beside 0, 1 and 2.
const (
	LineFD     = 3 + iota // to the supervisor (supervisor/privsep)
	ConfigFD              // a file with the WorkerConfig
	ControlFD             // listens for ps and inspect
	MemoryFD              // /proc/meminfo
	TraceFD               // takes the spans of --trace-init
	EndpointFD            // listens for invocations; not there with an event
	WebFD                 // listens for HTTP requests to the function; not there without --http
)

// TraceFile is the name of the file, below the state folder, that keeps the spans of the
// last daemon that traced: JSON, a span a line.
const TraceFile = "trace.jsonl"

// MaxTraceBytes bounds that file. A cold start takes some 12 KB of it, so there is room for
// 5,000, which is more than anybody reads.
const MaxTraceBytes = 64 << 20

// WorkerConfig is what the supervisor tells the worker at its start: all that the worker
// knows of the host and of the operator's choices.
type WorkerConfig struct {
	Instance string // id of the daemon
	Event    string // how the user calls the event on standard input; "" serves

	Revisions []function.Revision // to serve from the start on, one for each function
	Start     int                 // which worker of this daemon it is, from 1 on
	Control   bool                // there is a control process, from which the worker learns functions on demand
	Networks  map[string]isolation.Network

	LogLevel    string // least level of the daemon's own messages
	LogFormat   string // "Text" or "JSON", of all lines
	Descriptors string // "pipe" or "socket": what functions get as stdout and stderr

	Region, AccountID string
	Credentials       Credentials // of functions
	Renews            bool        // the credentials may change while the worker runs
	Web               *Web        // nil without --http
	Life              Life

	Concurrency               int // most sandboxes at once, of all functions together; never 0
	Strict, TraceInit         bool
	WarmMemory                uint64 // bytes that idle sandboxes may hold; 0 is half of the host's
	IdleTimeout, DrainTimeout time.Duration

	// Only with Control.
	Logs     LogConfig
	Roles    bool     // the operator has roles, whose credentials may change
	Memory   uint64   // bytes of all sandboxes together, as their functions may use them; 0 is the host's memory
	Unsigned bool     // requests without a signature are accepted on loopback (--unsigned-loopback)
	KeyPair  *KeyPair // of the endpoint, which has TLS then; nil without TLS
}

// Credentials are what functions get as AWS_ACCESS_KEY_ID and so on (ENV-02). Empty ones
// are left out.
type Credentials struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// Web has the choices of the operator for --http.
type Web struct {
	Mode  string   // one of invoke.InvokeModes
	Hosts []string // names by which clients may address it on loopback
}

// Life has the times and choices of the operator for the life of every sandbox.
type Life struct {
	InitTimeout    time.Duration // of an initialization with a phase of its own (LC-06)
	Linger         time.Duration // from the end of an invocation to the freeze (LC-80)
	InternalWindow time.Duration // of a shutdown with internal extensions only (LC-64)
	ExternalWindow time.Duration // of a shutdown with an external extension (LC-64)
	RuntimeShare   float64       // of ExternalWindow, for the runtime (LC-61)
	BillInit       bool          // LOG-25
	StreamRate     int64         // bytes a second of a streamed response; 0 is unlimited (RT-71)
}

// File returns an open file in memory with the configuration, for the worker's ConfigFD.
// Whoever starts the worker never waits for it to read: a pipe would hold no more than 64
// KiB. The caller closes the file.
func (c *WorkerConfig) File() (*os.File, error) { return writeConfig("worker", c) }

// ReadWorkerConfig reads what [WorkerConfig.File] has written, and closes f.
func ReadWorkerConfig(f *os.File) (*WorkerConfig, error) {
	return readConfig[WorkerConfig]("worker", f)
}

// writeConfig returns an open file in memory with the configuration of a process.
func writeConfig(process string, config any) (*os.File, error) {
	return memoryFile(process+"-config", func(f *os.File) error {
		if err := gob.NewEncoder(f).Encode(config); err != nil {
			return fmt.Errorf("configuration of the %s: %w", process, err)
		}
		return nil
	})
}

// memoryFile returns an open file in memory with what write writes, at its beginning.
func memoryFile(name string, write func(*os.File) error) (_ *os.File, err error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := write(f); err != nil {
		return nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// readConfig reads what writeConfig has written, and closes f.
func readConfig[Config any](process string, f *os.File) (*Config, error) {
	defer f.Close()
	c := new(Config)
	if err := gob.NewDecoder(f).Decode(c); err != nil {
		return nil, fmt.Errorf("configuration of the %s: %w", process, err)
	}
	return c, nil
}

// Sandboxes is how many sandboxes the worker may have at once if concurrency is the most
// that serve: as many may be on their way out.
func Sandboxes(concurrency int) int { return 2 * concurrency }
