package function

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// maxEnvBytes bounds the names and values of a function's variables (ENV-18).
const maxEnvBytes = 4096

// envName is the form of a variable's name (ENV-18). It keeps names with a leading
// underscore, which are the platform's (ENV-17), out.
var envName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]+$`)

// reservedEnv are the names that the platform gives a value, or keeps for itself, and
// lets nobody change (ENV-01 to ENV-12, ENV-16).
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

// overridableEnv are the names that the platform gives a value and a function may give
// another (ENV-15).
var overridableEnv = []string{
	"AWS_LAMBDA_LOG_FORMAT", "AWS_LAMBDA_LOG_LEVEL", "AWS_XRAY_CONTEXT_MISSING", "AWS_XRAY_DAEMON_ADDRESS",
	"LANG", "LD_LIBRARY_PATH", "PATH", "TZ",
}

// snapStartEnv are the names by which a restored sandbox gets its credentials (RT-72).
// Without snap-start a function may point them at a server of its own, as on Lambda.
var snapStartEnv = []string{"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_CREDENTIALS_FULL_URI"}

func ofSnapStart(name string) bool { return slices.Contains(snapStartEnv, name) }

// Reserved reports whether the platform alone gives the variable a value (ENV-16,
// ENV-17). Those of RT-72, which are reserved with snap-start only, are not among them.
func Reserved(name string) bool {
	return strings.HasPrefix(name, "_") || slices.Contains(reservedEnv, name)
}

// Overrides reports whether a function's value of the variable wins over a value of the
// platform's (ENV-15).
func Overrides(name string) bool { return slices.Contains(overridableEnv, name) }

// CheckVariable reports why a function cannot have a variable of that name and value: nil
// if it can. It is the one policy: what it lets pass reaches the function's processes,
// unless the platform gives the name a value and [Overrides] is false. The error never
// repeats the value.
func CheckVariable(name, value string) error {
	switch {
	case Reserved(name):
		return fmt.Errorf("%s is reserved: the platform sets it", name)
	case !envName.MatchString(name):
		return fmt.Errorf("name %q must be a letter followed by letters, digits and underscores", name)
	case strings.Contains(value, "\x00"):
		return fmt.Errorf("the value of %s holds a NUL byte", name)
	}
	return nil
}

// CheckEnv is [CheckVariable] for all of a function's variables, and bounds them together.
// Of several that are wrong it reports the first by name.
func CheckEnv(env map[string]string) error {
	size := 0
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if err := CheckVariable(name, env[name]); err != nil {
			return err
		}
		size += len(name) + len(env[name])
	}
	if size > maxEnvBytes {
		return fmt.Errorf("all names and values together are %d bytes, at most %d are allowed", size, maxEnvBytes)
	}
	return nil
}
