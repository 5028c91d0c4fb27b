package rapid

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// notForExtensions lists variables that an extension never gets (ENV-21). It does not get
// names with a leading underscore either.
var notForExtensions = []string{
	"AWS_EXECUTION_ENV", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_XRAY_CONTEXT_MISSING",
	"AWS_XRAY_DAEMON_ADDRESS", "LAMBDA_RUNTIME_DIR", "LAMBDA_TASK_ROOT",
}

// runtimeEnv returns the environment of the runtime, sorted (section 6.1).
func runtimeEnv(c *Config) []string {
	env := platformEnv(c)
	addCustomer(env, &c.Function)
	traitsOf(c.Initialization).environment(c, env)
	return sorted(env)
}

// extensionEnv returns the environment of an external extension, sorted (section 6.3).
func extensionEnv(c *Config) []string {
	env := platformEnv(c)
	addCustomer(env, &c.Function)
	maps.DeleteFunc(env, func(name, _ string) bool {
		return strings.HasPrefix(name, "_") || slices.Contains(notForExtensions, name)
	})
	return sorted(env)
}

func platformEnv(c *Config) map[string]string {
	f := &c.Function
	env := map[string]string{
		// ENV-01
		"AWS_LAMBDA_FUNCTION_NAME":        f.Name,
		"AWS_LAMBDA_FUNCTION_VERSION":     f.Version,
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.Itoa(f.MemoryMB),
		"AWS_REGION":                      f.Region,
		"AWS_DEFAULT_REGION":              f.Region,
		// ENV-03 to ENV-05, ENV-07
		"AWS_LAMBDA_RUNTIME_API":         c.APIAddr,
		"AWS_LAMBDA_LOG_GROUP_NAME":      f.LogGroup,
		"AWS_LAMBDA_LOG_STREAM_NAME":     c.LogStream,
		"_HANDLER":                       f.Handler,
		"LAMBDA_TASK_ROOT":               taskRoot,
		"LAMBDA_RUNTIME_DIR":             "/var/runtime",
		"AWS_LAMBDA_INITIALIZATION_TYPE": c.Initialization.String(),
		// ENV-08
		"AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
		// ENV-10
		"LANG":            f.Locale,
		"TZ":              ":UTC",
		"PATH":            "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
		"LD_LIBRARY_PATH": "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
		// ENV-11
		"_LAMBDA_TELEMETRY_LOG_FD": framesFD,
	}
	if f.LogFormat == telemetry.JSON {
		env["AWS_LAMBDA_LOG_FORMAT"] = string(telemetry.JSON)
	}
	if f.Image != nil { // ENV-10 applies to zips only: an image has its own
		delete(env, "LANG")
		delete(env, "PATH")
		delete(env, "LD_LIBRARY_PATH")
	}
	if f.LogLevel != "" {
		env["AWS_LAMBDA_LOG_LEVEL"] = f.LogLevel
	}
	if f.Runtime != "" && !strings.HasPrefix(f.Runtime, "provided") { // ENV-06
		env["AWS_EXECUTION_ENV"] = "AWS_Lambda_" + f.Runtime
	}
	if host, port, ok := strings.Cut(c.Settings.XRayAddress, ":"); ok { // ENV-08
		env["AWS_XRAY_DAEMON_ADDRESS"] = c.Settings.XRayAddress
		env["_AWS_XRAY_DAEMON_ADDRESS"] = host
		env["_AWS_XRAY_DAEMON_PORT"] = port
	}
	if c.Initialization == SnapStart { // RT-72, ENV-22: credentials in variables would be those of the snapshot
		env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = "http://" + c.APIAddr + "/2021-04-23/credentials"
		env["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = c.Token
		return env
	}
	for name, value := range map[string]string{ // ENV-02
		"AWS_ACCESS_KEY_ID":     c.Credentials.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY": c.Credentials.SecretAccessKey,
		"AWS_SESSION_TOKEN":     c.Credentials.SessionToken,
	} {
		if value != "" {
			env[name] = value
		}
	}
	return env
}

// addCustomer adds the customer's variables (ENV-15 to ENV-18) and those of a container image.
// It omits what the policy of package function refuses. Only variables of an image can be
// among that, because a function's own have been checked before.
func addCustomer(env map[string]string, f *Function) {
	check := function.CheckVariable
	if f.Image != nil {
		check = function.CheckImageVariable
	}
	for name, value := range f.Env {
		_, platform := env[name]
		if check(name, value) == nil && (!platform || function.Overrides(name)) {
			env[name] = value
		}
	}
}

func sorted(env map[string]string) []string {
	list := make([]string, 0, len(env))
	for name, value := range env {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}
