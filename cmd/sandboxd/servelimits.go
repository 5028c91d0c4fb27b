package main

import (
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/message"
)

// limitOptions are the settings of what the clients of `serve` may use together.
type limitOptions struct {
	functions, codeMB    int
	uploads, rate, burst int
	memoryMB             int // of all sandboxes together; 0 is the host's memory
}

// newLimitOptions returns the defaults. Those of functions and code are AWS's where it has them.
func newLimitOptions() limitOptions {
	return limitOptions{functions: 10_000, codeMB: 75 << 10, uploads: 2, rate: 100, burst: 200}
}

// add defines the settings.
func (l *limitOptions) add(f *pflag.FlagSet) {
	f.Var(cli.Int(&l.functions, 1, 1_000_000, ""), "functions", "most functions")
	f.Var(cli.Int(&l.codeMB, 1, 1<<30, " MB"), "code-size", "most MB of the code of all functions together, as it was uploaded")
	f.Var(cli.Int(&l.uploads, 1, 64, ""), "uploads", "uploads of code at once; 16 more wait")
	f.Var(cli.Int(&l.rate, 1, 100_000, ""), "api-rate", "requests to the API a second of one access key, without invocations")
	f.Var(cli.Int(&l.burst, 1, 100_000, ""), "api-burst", "requests to the API at once of one access key")
	f.Var(cli.IntOrZero(&l.memoryMB, 128, 1<<30, " MB"), "sandbox-memory", "most memory in MB of all sandboxes together, each with the MemorySize of its function; 0 is the host's memory")
}

// message returns the limits as the control process gets them.
func (l *limitOptions) message() message.Limits {
	return message.Limits{Functions: l.functions, CodeBytes: int64(l.codeMB) << 20, Uploads: l.uploads, Rate: float64(l.rate), Burst: l.burst}
}
