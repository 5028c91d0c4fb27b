package function

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// maxEnvBytes is the most bytes of the names and values of all variables (ENV-18).
const maxEnvBytes = 4096

// envName is the form of a variable's name (ENV-18). It excludes names with a leading
// underscore, which belong to the platform (ENV-17).
var envName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]+$`)

// reservedEnv lists the names that only the platform may set (ENV-01 to ENV-12, ENV-16).
var reservedEnv = []string{
	"AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
	"AWS_DEFAULT_REGION", "AWS_REGION",
	"AWS_EXECUTION_ENV",
	"AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION",
	"AWS_LAMBDA_INITIALIZATION_TYPE",
	"AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME",
	"AWS_LAMBDA_MAX_CONCURRENCY",
	"AWS_LAMBDA_RUNTIME_API",
	"LAMBDA_RUNTIME_DIR", "LAMBDA_TASK_ROOT",
}

// overridableEnv lists the names that the platform sets and a function may override
// (ENV-15).
var overridableEnv = []string{
	"AWS_LAMBDA_LOG_FORMAT", "AWS_LAMBDA_LOG_LEVEL", "AWS_XRAY_CONTEXT_MISSING", "AWS_XRAY_DAEMON_ADDRESS",
	"LANG", "LD_LIBRARY_PATH", "PATH", "TZ",
}

// snapStartEnv lists the variables through which a restored sandbox gets its credentials
// (RT-72). Without snap-start a function may set them, for a server of its own, as on
// Lambda.
var snapStartEnv = []string{"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_CREDENTIALS_FULL_URI"}

func ofSnapStart(name string) bool { return slices.Contains(snapStartEnv, name) }

// Reserved reports whether only the platform may set the variable (ENV-16, ENV-17). It does
// not cover the variables of RT-72, which are reserved with snap-start only.
func Reserved(name string) bool {
	return strings.HasPrefix(name, "_") || slices.Contains(reservedEnv, name)
}

// Overrides reports whether the function's value of the variable overrides the platform's
// (ENV-15).
func Overrides(name string) bool { return slices.Contains(overridableEnv, name) }

// CheckVariable returns an error if a function may not have a variable with that name and
// value. A variable that it accepts reaches the function's processes, unless the platform
// sets the same name and [Overrides] is false. The error does not contain the value, which
// may be secret. [CheckImageVariable] is the policy for what an image brings itself.
func CheckVariable(name, value string) error {
	switch {
	case Reserved(name):
		return fmt.Errorf("%s is reserved: the platform sets it; use another name", name)
	case !envName.MatchString(name):
		return fmt.Errorf("name %q must be a letter followed by at least one letter, digit or underscore, and nothing else", name)
	case strings.Contains(value, "\x00"):
		return fmt.Errorf("the value of %s holds a NUL byte", name)
	}
	return nil
}

// platformPrefixes begin the names that the platform and AWS's runtimes use among themselves.
var platformPrefixes = []string{"_HANDLER", "_X_AMZN_", "_LAMBDA_", "_AWS_"}

// CheckImageVariable is [CheckVariable] for a variable that a container image has. The form of
// names is a rule of Lambda's configuration, not of images, so a name may be anything but that
// of a variable which the platform sets (ENV-17, ENV-18).
func CheckImageVariable(name, value string) error {
	platform := slices.Contains(reservedEnv, name) || slices.ContainsFunc(platformPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	switch {
	case platform:
		return fmt.Errorf("%s is reserved: the platform sets it; use another name", name)
	case name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00"):
		return fmt.Errorf("%q is no variable: its name or its value cannot be passed to a process", name)
	}
	return nil
}

// CheckEnv applies [CheckVariable] to all variables in the order of their names and returns
// the first error. It also limits the size of all variables together.
func CheckEnv(env map[string]string) error {
	size := 0
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if err := CheckVariable(name, env[name]); err != nil {
			return err
		}
		size += len(name) + len(env[name])
	}
	if size > maxEnvBytes {
		return fmt.Errorf("all names and values together have %d bytes; at most %d are allowed", size, maxEnvBytes)
	}
	return nil
}
