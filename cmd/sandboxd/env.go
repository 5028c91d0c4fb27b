package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/function"
)

// envValue is a flag value that collects environment variables from NAME=VALUE. It
// implements pflag.Value.
type envValue struct{ env *map[string]string }

func (v envValue) Type() string { return "K=V" }

func (v envValue) String() string {
	if v.env == nil { // pflag calls String on zero values too
		return ""
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(*v.env)) {
		list = append(list, name+"="+(*v.env)[name])
	}
	return strings.Join(list, ",")
}

func (v envValue) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("must have the form NAME=VALUE, and one has no \"=\"")
	}
	if err := function.CheckVariable(name, value); err != nil {
		if from := setBy[name]; from != "" {
			return fmt.Errorf("%s is reserved: the platform sets it, from %s", name, from)
		}
		return err
	}
	if *v.env == nil {
		*v.env = map[string]string{}
	}
	(*v.env)[name] = value
	return function.CheckEnv(*v.env)
}

// isSecret reports whether the value of the flag with that name may be a secret, which no
// message repeats.
func isSecret(flag string) bool {
	return slices.Contains([]string{"env", "access-key-id", "secret-access-key", "session-token"}, flag)
}

// setBy says for reserved variables which flags they come from.
var setBy = map[string]string{
	"AWS_ACCESS_KEY_ID":               "--credentials env, --credentials FILE or --access-key-id",
	"AWS_SECRET_ACCESS_KEY":           "--credentials env, --credentials FILE or --secret-access-key",
	"AWS_SESSION_TOKEN":               "--credentials env, --credentials FILE or --session-token",
	"AWS_REGION":                      "--region or --credentials",
	"AWS_DEFAULT_REGION":              "--region or --credentials",
	"AWS_EXECUTION_ENV":               "--runtime",
	"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "--memory",
	"AWS_LAMBDA_FUNCTION_NAME":        "--function-name",
	"AWS_LAMBDA_MAX_CONCURRENCY":      "--managed",
	"_HANDLER":                        "--handler",
}
