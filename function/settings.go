// Package function describes Lambda functions as plain data: their settings and the
// validation of settings, the policy for environment variables, and revisions. It does not
// run functions. Values of this package have no locks: share them only once nothing changes
// them.
package function

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Limits of a function's settings. Sizes are in MB, which mean mebibytes, as everywhere in
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
	MaxManaged     = 1024              // a CHOICE: concurrent invocations of one sandbox
	MaxConcurrency = 4094              // sandboxes: each has a range of host ids (host/subid)
)

// NameForm is the form of a function's name (INV-01).
var NameForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// LogFormats, ApplicationLogLevels and SystemLogLevels are the valid values of the settings
// with those names (ENV-11, LOG-41). ApplicationLogLevel can also be "", which sets none.
var (
	LogFormats           = []string{"Text", "JSON"}
	ApplicationLogLevels = []string{"TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"}
	SystemLogLevels      = []string{"DEBUG", "INFO", "WARN"}
)

// Settings are the settings of a function that its owner chooses. The zero value is not
// valid: start from [Defaults]. Settings that are part of a [Revision] must not be changed.
type Settings struct {
	Name    string
	Handler string // in the form of the runtime (_HANDLER)
	Runtime string // Lambda's identifier, such as "python3.11"; unused with Image
	Image   bool   // the code is a container image

	MemoryMB    int
	EphemeralMB int           // size of /tmp
	Timeout     time.Duration // of an invocation; whole seconds
	Env         map[string]string
	Network     string // name of one of the operator's networks
	Seccomp     string // name of a seccomp profile

	Concurrency     int  // most sandboxes at once; 0 is as many as memory allows
	Provisioned     int  // number of sandboxes that initialize before the first request, and are kept
	SnapStart       bool // stop each sandbox after its initialization, and restore it for its first invocation
	TenantIsolation bool // no sandbox serves two tenants
	Managed         int  // most concurrent invocations of a sandbox in managed mode; 0 is classic mode

	LogFormat           string // one of LogFormats
	ApplicationLogLevel string // one of ApplicationLogLevels, or ""
	SystemLogLevel      string // one of SystemLogLevels
}

// Defaults returns the settings that a function has unless its owner chooses others.
func Defaults() Settings {
	return Settings{
		Name: "function", Runtime: "provided.al2023",
		MemoryMB: MinMemoryMB, EphemeralMB: MinEphemeralMB, Timeout: 3 * time.Second,
		Network: "none", Seccomp: "default",
		LogFormat: "Text", SystemLogLevel: "INFO",
	}
}

// Error reports an invalid setting of a function. A setting has different names in
// different interfaces, such as --snap-start on the command line and SnapStart in the
// Lambda API, so Text lets the caller choose them.
type Error struct{ text string } // names of settings are in braces

// Error returns the text with the names that settings have in the configuration file.
func (e *Error) Error() string { return e.Text(func(setting string) string { return setting }) }

// Text returns the text with other names for settings: name maps the name in the
// configuration file to the name to use.
func (e *Error) Text(name func(setting string) string) string {
	return settingName.ReplaceAllStringFunc(e.text, func(s string) string { return name(strings.Trim(s, "{}")) })
}

var settingName = regexp.MustCompile(`\{[a-z-]+\}`)

func wrong(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// Validate returns an [*Error] for the first invalid setting, or nil. It does not check
// that the network, the seccomp profile and the runtime exist: the caller has to.
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

// checkInitialization checks the settings that exclude or limit each other.
func (s *Settings) checkInitialization() error {
	switch {
	case s.SnapStart && s.Provisioned > 0: // LC-94
		return wrong("{snap-start} and {provisioned} cannot be used together: leave one of them out")
	case s.SnapStart && s.Image:
		return wrong("{snap-start} cannot be used with container images: leave {snap-start} out, or use a zip")
	case s.SnapStart && s.EphemeralMB > MinEphemeralMB:
		return wrong("{snap-start} allows %d MB of {ephemeral-storage}, not %d", MinEphemeralMB, s.EphemeralMB)
	case s.Managed > 0 && (s.SnapStart || s.TenantIsolation || s.Provisioned > 0):
		return wrong("{managed} cannot be used with {snap-start}, {provisioned} or {tenant-isolation}: leave one of them out")
	case s.Managed > 0 && s.LogFormat != "JSON": // RT-66
		return wrong("{managed} requires logs in JSON: add {log-format} JSON")
	case s.Concurrency > 0 && s.Provisioned > s.Concurrency:
		return wrong("{provisioned} %d is more than {concurrency} %d: lower the first or raise the second", s.Provisioned, s.Concurrency)
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

// CPU returns how many processors the function may use after its initialization, in
// proportion to its memory (ENV-32).
func (s *Settings) CPU() float64 { return min(float64(s.MemoryMB)/mbPerCPU, MaxCPUs) }

// ARN returns the unqualified ARN of the function name.
func ARN(region, account, name string) string {
	return fmt.Sprintf("arn:aws:lambda:%s:%s:function:%s", region, account, name)
}
