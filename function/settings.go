// Package function says what a function is: plain data, its validation, the one policy
// on environment names, and revisions. It knows nothing of how functions run.
package function

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Bounds of a function's settings. Sizes are in MB, which are mebibytes as everywhere on
// Lambda.
const (
	MinMemoryMB    = 128               // ENV-32
	MaxMemoryMB    = 10240             // ENV-32
	MinTimeout     = time.Second       // ENV-33
	MaxTimeout     = 900 * time.Second // ENV-33
	MinEphemeralMB = 512               // ENV-30
	MaxEphemeralMB = 10240             // ENV-30
	MaxLayers      = 5                 // ENV-36
	MaxCPUs        = 6                 // ENV-32
	MaxPIDs        = 1024              // ENV-34
	MaxManaged     = 1024              // a CHOICE: invocations at once in one sandbox
	MaxConcurrency = 4094              // sandboxes at once: each has a range of host ids (host/subid)
)

// NameForm is the form of a function's name (INV-01).
var NameForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// LogFormats, ApplicationLogLevels and SystemLogLevels are what the settings of those
// names can be (ENV-11, LOG-41). An application's level can also be "", for none.
var (
	LogFormats           = []string{"Text", "JSON"}
	ApplicationLogLevels = []string{"TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"}
	SystemLogLevels      = []string{"DEBUG", "INFO", "WARN"}
)

// Settings are what its owner says of a function. The zero value is no valid function:
// take [Defaults] and change what differs. They are data, which nobody changes once they
// are part of a [Revision].
type Settings struct {
	Name    string
	Handler string // as the runtime expects it (_HANDLER)
	Runtime string // Lambda's identifier, such as "python3.11"; of no meaning with Image
	Image   bool   // the code is a container image

	MemoryMB    int
	EphemeralMB int           // size of /tmp
	Timeout     time.Duration // of an invocation, in whole seconds
	Env         map[string]string
	Network     string // name of one of the operator's networks
	Seccomp     string // name of a profile of system calls

	Concurrency     int  // most sandboxes at once; 0 is what memory allows
	Provisioned     int  // sandboxes that initialize before the first request, and are kept
	SnapStart       bool // each sandbox waits at its snapshot point and is restored by its first invocation
	TenantIsolation bool // no sandbox serves two tenants
	Managed         int  // invocations at once in a sandbox, in managed mode; 0 is classic mode, one

	LogFormat           string // one of LogFormats
	ApplicationLogLevel string // one of ApplicationLogLevels, or ""
	SystemLogLevel      string // one of SystemLogLevels
}

// Defaults returns the settings of a function of which nothing is said.
func Defaults() Settings {
	return Settings{
		Name: "function", Runtime: "provided.al2023",
		MemoryMB: MinMemoryMB, EphemeralMB: MinEphemeralMB, Timeout: 3 * time.Second,
		Network: "none", Seccomp: "default",
		LogFormat: "Text", SystemLogLevel: "INFO",
	}
}

// Error says what is wrong with a function's settings. Its text names settings, and
// callers know them by names of their own: --snap-start on a command line is SnapStart
// in the Lambda API.
type Error struct{ text string } // the names of settings are in braces

// Error names the settings as the configuration file does.
func (e *Error) Error() string { return e.Text(func(setting string) string { return setting }) }

// Text is the error with settings called as name says, of which the argument is the name
// in the configuration file.
func (e *Error) Text(name func(setting string) string) string {
	return settingName.ReplaceAllStringFunc(e.text, func(s string) string { return name(strings.Trim(s, "{}")) })
}

var settingName = regexp.MustCompile(`\{[a-z-]+\}`)

func wrong(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// Validate reports the first thing that is wrong with the settings, as an [*Error]. That
// the network, the profile and the runtime exist is for the caller to see.
func (s *Settings) Validate() error {
	switch {
	case !NameForm.MatchString(s.Name):
		return wrong("{function-name} %q: must be 1 to 64 letters, digits, '-' and '_'", s.Name)
	case s.MemoryMB < MinMemoryMB || s.MemoryMB > MaxMemoryMB:
		return wrong("{memory} %d: must be a number from %d to %d MB", s.MemoryMB, MinMemoryMB, MaxMemoryMB)
	case s.EphemeralMB < MinEphemeralMB || s.EphemeralMB > MaxEphemeralMB:
		return wrong("{ephemeral-storage} %d: must be a number from %d to %d MB", s.EphemeralMB, MinEphemeralMB, MaxEphemeralMB)
	case s.Timeout < MinTimeout || s.Timeout > MaxTimeout || s.Timeout%time.Second != 0:
		return wrong("{timeout} %v: must be whole seconds from %v to %v", s.Timeout, MinTimeout, MaxTimeout)
	case s.Concurrency < 0 || s.Concurrency > MaxConcurrency:
		return wrong("{concurrency} %d: must be a number from 1 to %d, or 0 for what memory allows", s.Concurrency, MaxConcurrency)
	case s.Provisioned < 0 || s.Provisioned > MaxConcurrency:
		return wrong("{provisioned} %d: must be a number from 0 to %d", s.Provisioned, MaxConcurrency)
	case s.Managed < 0 || s.Managed > MaxManaged:
		return wrong("{managed} %d: must be a number from 1 to %d, or 0", s.Managed, MaxManaged)
	case !oneOf(s.LogFormat, LogFormats):
		return wrong("{log-format} %q: must be %s", s.LogFormat, strings.Join(LogFormats, " or "))
	case s.ApplicationLogLevel != "" && !oneOf(s.ApplicationLogLevel, ApplicationLogLevels):
		return wrong("{application-log-level} %q: must be %s", s.ApplicationLogLevel, strings.Join(ApplicationLogLevels, " or "))
	case !oneOf(s.SystemLogLevel, SystemLogLevels):
		return wrong("{system-log-level} %q: must be %s", s.SystemLogLevel, strings.Join(SystemLogLevels, " or "))
	}
	if err := s.checkInitialization(); err != nil {
		return err
	}
	return s.checkEnv()
}

// checkInitialization checks that the ways to initialize go together.
func (s *Settings) checkInitialization() error {
	switch {
	case s.SnapStart && s.Provisioned > 0: // LC-94
		return wrong("{snap-start} and {provisioned} exclude each other: leave one of them out")
	case s.SnapStart && s.Image:
		return wrong("{snap-start} is not for container images: leave one of them out")
	case s.SnapStart && s.EphemeralMB > MinEphemeralMB:
		return wrong("{snap-start} allows %d MB of {ephemeral-storage}, not %d", MinEphemeralMB, s.EphemeralMB)
	case s.Managed > 0 && (s.SnapStart || s.TenantIsolation || s.Provisioned > 0):
		return wrong("{managed} excludes {snap-start}, {provisioned} and {tenant-isolation}: leave one of them out")
	case s.Managed > 0 && s.LogFormat != "JSON": // RT-66
		return wrong("{managed} logs in JSON only: add {log-format} JSON")
	case s.Concurrency > 0 && s.Provisioned > s.Concurrency:
		return wrong("{provisioned} %d is more than {concurrency} %d allows", s.Provisioned, s.Concurrency)
	}
	return nil
}

// checkEnv checks the function's variables.
func (s *Settings) checkEnv() error {
	for name := range s.Env {
		if s.SnapStart && ofSnapStart(name) {
			return wrong("{env}: %s is reserved: with {snap-start} the platform sets it", name)
		}
	}
	if err := CheckEnv(s.Env); err != nil {
		return wrong("{env}: %v", err)
	}
	return nil
}

func oneOf(s string, list []string) bool {
	for _, other := range list {
		if s == other {
			return true
		}
	}
	return false
}

// mbPerCPU is the memory that comes with one processor (ENV-32).
const mbPerCPU = 1769

// CPU is the function's share of the processors once it has initialized, in proportion to
// its memory (ENV-32). 1 is one processor.
func (s *Settings) CPU() float64 { return min(float64(s.MemoryMB)/mbPerCPU, MaxCPUs) }

// ARN is the unqualified ARN of the function of that name.
func ARN(region, account, name string) string {
	return fmt.Sprintf("arn:aws:lambda:%s:%s:function:%s", region, account, name)
}
