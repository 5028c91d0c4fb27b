package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// maxEnvBytes bounds the names and values of a function's variables (ENV-18).
const maxEnvBytes = 4096

// envName is the form of a variable's name (ENV-18).
var envName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]+$`)

// reservedEnv are the names that the platform gives a value and lets nobody change
// (ENV-01 to ENV-13; ENV-15 lists the exceptions). Names with a leading underscore
// are refused by their form.
var reservedEnv = []string{
	"AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_REGION", "AWS_DEFAULT_REGION",
	"AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
	"AWS_LAMBDA_RUNTIME_API",
	"AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME",
	"LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR",
	"AWS_EXECUTION_ENV",
	"AWS_LAMBDA_INITIALIZATION_TYPE",
	"AWS_LAMBDA_MAX_CONCURRENCY",
}

// envValue collects a function's variables from K=V.
type envValue struct{ env *map[string]string }

func (v envValue) Type() string { return "K=V" }

func (v envValue) String() string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(deref(v.env))) {
		list = append(list, name+"="+(*v.env)[name])
	}
	return strings.Join(list, ",")
}

func (v envValue) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	switch {
	case !ok:
		return fmt.Errorf("must have the form NAME=VALUE")
	case !envName.MatchString(name):
		return fmt.Errorf("name %q must be a letter followed by letters, digits and underscores", name)
	case slices.Contains(reservedEnv, name):
		return fmt.Errorf("%s is reserved: the platform sets it", name)
	case strings.Contains(value, "\x00"):
		return fmt.Errorf("the value of %s holds a NUL byte", name)
	}
	if *v.env == nil {
		*v.env = map[string]string{}
	}
	(*v.env)[name] = value
	size := 0
	for name, value := range *v.env {
		size += len(name) + len(value)
	}
	if size > maxEnvBytes {
		return fmt.Errorf("all names and values together are %d bytes, at most %d are allowed", size, maxEnvBytes)
	}
	return nil
}
