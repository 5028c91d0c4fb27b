package rapid

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

func envConfig() *Config {
	f := testFunction()
	f.Runtime, f.LogLevel, f.Locale = "nodejs22.x", "DEBUG", "C.UTF-8"
	f.Env = map[string]string{
		"MINE": "$HOME", "TZ": "Europe/Berlin", "NODE_OPTIONS": "-x", "AWS_XRAY_DAEMON_ADDRESS": "1.2.3.4:5", // ENV-15
		"AWS_REGION": "mars", "_HANDLER": "evil", "_LAMBDA_SERVER_PORT": "1", "AWS_LAMBDA_MAX_CONCURRENCY": "9", // ENV-16, ENV-17, RT-67
		"AWS_ACCESS_KEY": "k", "LAMBDA_TASK_ROOT": "/x", "x": "short", "1A": "digit", "A=B": "c", "NUL": "a\x00b", // ENV-18
		"AWS_LAMBDA_EXEC_WRAPPER": "/opt/wrapper", // ENV-26
	}
	return &Config{Function: f, Settings: DefaultSettings(), LogStream: "stream", APIAddr: "127.0.0.1:9001",
		Credentials: Credentials{"AKID", "SECRET", "TOKEN"}}
}

// ENV-01 to ENV-19, ACC-20: exactly these.
func TestRuntimeEnvironment(t *testing.T) {
	want := []string{
		"AWS_ACCESS_KEY_ID=AKID", "AWS_DEFAULT_REGION=eu-west-1", "AWS_EXECUTION_ENV=AWS_Lambda_nodejs22.x", "AWS_LAMBDA_EXEC_WRAPPER=/opt/wrapper",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128", "AWS_LAMBDA_FUNCTION_NAME=fn", "AWS_LAMBDA_FUNCTION_VERSION=$LATEST",
		"AWS_LAMBDA_INITIALIZATION_TYPE=on-demand", "AWS_LAMBDA_LOG_GROUP_NAME=/aws/lambda/fn", "AWS_LAMBDA_LOG_LEVEL=DEBUG",
		"AWS_LAMBDA_LOG_STREAM_NAME=stream", "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001", "AWS_REGION=eu-west-1", "AWS_SECRET_ACCESS_KEY=SECRET",
		"AWS_SESSION_TOKEN=TOKEN", "AWS_XRAY_CONTEXT_MISSING=LOG_ERROR", "AWS_XRAY_DAEMON_ADDRESS=1.2.3.4:5", "LAMBDA_RUNTIME_DIR=/var/runtime",
		"LAMBDA_TASK_ROOT=/var/task", "LANG=C.UTF-8",
		"LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
		"MINE=$HOME", "NODE_OPTIONS=-x", "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin", "TZ=Europe/Berlin",
		"_AWS_XRAY_DAEMON_ADDRESS=127.0.0.1", "_AWS_XRAY_DAEMON_PORT=2000", "_HANDLER=main.handler", "_LAMBDA_TELEMETRY_LOG_FD=3",
	}
	if got := runtimeEnv(envConfig()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	c := envConfig()
	c.Function.LogFormat = telemetry.JSON
	for name, env := range map[string][]string{"the runtime": runtimeEnv(c), "an extension": extensionEnv(c)} {
		if !slices.Contains(env, "AWS_LAMBDA_LOG_FORMAT=JSON") {
			t.Errorf("%s does not get the log format JSON (ENV-11)", name)
		}
	}
	c = envConfig()
	c.Function.Runtime = "provided.al2023"
	if slices.ContainsFunc(runtimeEnv(c), func(e string) bool { return strings.HasPrefix(e, "AWS_EXECUTION_ENV") }) {
		t.Error("AWS_EXECUTION_ENV with provided.al2023 (ENV-06)")
	}
}

// ENV-10: the search paths of zips are not forced on an image.
func TestImageEnvironment(t *testing.T) {
	c := envConfig()
	c.Function.Image = &Image{}
	c.Function.Env = map[string]string{"PATH": "/image/bin"}
	env := runtimeEnv(c)
	for _, e := range env {
		if strings.HasPrefix(e, "LD_LIBRARY_PATH=") || strings.HasPrefix(e, "LANG=") || strings.HasPrefix(e, "PATH=") && e != "PATH=/image/bin" {
			t.Errorf("an image gets %s", e)
		}
	}
	if !slices.Contains(env, "PATH=/image/bin") || !slices.Contains(env, "TZ=:UTC") {
		t.Errorf("%q", env)
	}
}

// Variables of an image may have any name but those of the platform (ENV-17, ENV-18).
func TestImageVariables(t *testing.T) {
	c := envConfig()
	c.Function.Image = &Image{}
	want := []string{"1A=digit", "_JAVA_OPTIONS=-Xss1m", "npm_config_cache=/tmp", "spring.profiles.active=prod", "x=short", "with space=y", "empty="}
	c.Function.Env = map[string]string{
		"AWS_REGION": "mars", "AWS_LAMBDA_RUNTIME_API": "evil", "_HANDLER": "evil", "_LAMBDA_SERVER_PORT": "1", "_X_AMZN_TRACE_ID": "1", "_AWS_XRAY_DAEMON_PORT": "1",
		"AWS_SESSION_TOKEN": "theirs", "LAMBDA_TASK_ROOT": "/x", "A=B": "c", "NUL": "a\x00b", "": "nameless",
	}
	plain := runtimeEnv(c)
	for _, v := range want {
		name, value, _ := strings.Cut(v, "=")
		c.Function.Env[name] = value
	}
	got := runtimeEnv(c)
	for _, v := range want {
		if !slices.Contains(got, v) {
			t.Errorf("an image does not get %s", v)
		}
	}
	if len(got) != len(plain)+len(want) || !slices.Contains(got, "_HANDLER=main.handler") || !slices.Contains(got, "LAMBDA_TASK_ROOT=/var/task") {
		t.Errorf("%q", got)
	}
	if got := extensionEnv(c); slices.Contains(got, "_JAVA_OPTIONS=-Xss1m") || !slices.Contains(got, "spring.profiles.active=prod") {
		t.Errorf("an extension gets %q", got)
	}
}

// ENV-20, ENV-21: exactly these.
func TestExtensionEnvironment(t *testing.T) {
	want := []string{
		"AWS_ACCESS_KEY_ID=AKID", "AWS_DEFAULT_REGION=eu-west-1", "AWS_LAMBDA_EXEC_WRAPPER=/opt/wrapper",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128", "AWS_LAMBDA_FUNCTION_NAME=fn", "AWS_LAMBDA_FUNCTION_VERSION=$LATEST",
		"AWS_LAMBDA_INITIALIZATION_TYPE=on-demand", "AWS_LAMBDA_LOG_LEVEL=DEBUG", "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001",
		"AWS_REGION=eu-west-1", "AWS_SECRET_ACCESS_KEY=SECRET", "AWS_SESSION_TOKEN=TOKEN", "LANG=C.UTF-8",
		"LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
		"MINE=$HOME", "NODE_OPTIONS=-x", "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin", "TZ=Europe/Berlin",
	}
	if got := extensionEnv(envConfig()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// RT-45.
func TestErrorTypes(t *testing.T) {
	for in, want := range map[string]string{
		"Runtime.ImportModuleError": "Runtime.ImportModuleError", "my Function.Foo here": "my Function.Foo here",
		"Function.x": "Function.Unknown", "Function.": "Function.Unknown", "": "Runtime.Unknown", "Error": "Runtime.Unknown", "Runtime.x": "Runtime.Unknown",
	} {
		if got := sanitizeType(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// RT-46, RT-47.
func TestCauses(t *testing.T) {
	for _, bad := range []string{"", "{", "[]", "{}", `{"exceptions":[],"paths":[]}`, `"text"`} {
		if got := sanitizeCause([]byte(bad)); got != nil {
			t.Errorf("%q: %s, want it dropped", bad, got)
		}
	}
	many := cause{Message: "m"}
	for range 100 {
		many.Exceptions = append(many.Exceptions, exception{Message: strings.Repeat("e", 1000)})
		many.Paths = append(many.Paths, "p")
	}
	var got cause
	b := sanitizeCause(causeBytes(many))
	if err := json.Unmarshal(b, &got); err != nil || len(got.Exceptions) != 60 || len(got.Paths) != 60 || len(b) > maxCause {
		t.Errorf("%d exceptions, %d paths, %d bytes, %v: want the first 60 %%", len(got.Exceptions), len(got.Paths), len(b), err)
	}
	long := strings.Repeat("x", 70000)
	got = cause{}
	b = sanitizeCause(causeBytes(cause{Message: long, Dir: long, Paths: []string{long}}))
	if err := json.Unmarshal(b, &got); err != nil || len(got.Message) != maxCauseText+3 || len(got.Dir) != maxCauseText+3 || got.Paths != nil {
		t.Errorf("%d, %d, %d, %v", len(got.Message), len(got.Dir), len(got.Paths), err)
	}
}

// The policy on names is one (package function): what the platform sets is reserved, or the
// customer's value wins, and what is refused is never there. Names of snap-start are reserved
// there alone.
func TestPolicyOfNames(t *testing.T) {
	for _, start := range []Initialization{OnDemand, SnapStart, Managed} {
		c := envConfig()
		c.Initialization, c.Function.Env = start, map[string]string{}
		platform := map[string]bool{}
		for _, e := range append(runtimeEnv(c), extensionEnv(c)...) {
			name, _, _ := strings.Cut(e, "=")
			platform[name] = true
			c.Function.Env[name] = "customer"
		}
		for _, e := range runtimeEnv(c) {
			name, value, _ := strings.Cut(e, "=")
			if wins := value == "customer"; wins != function.Overrides(name) {
				t.Errorf("%v: %s is the customer's: %v, the policy says %v", start, name, wins, function.Overrides(name))
			}
			if !function.Overrides(name) && !function.Reserved(name) && (start != SnapStart || !strings.HasPrefix(name, "AWS_CONTAINER_")) {
				t.Errorf("%v: the platform sets %s, which the policy lets a customer set", start, name)
			}
		}
	}
	c := envConfig()
	c.Function.Env = map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/"}
	if !slices.Contains(runtimeEnv(c), "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:1/") {
		t.Error("a variable that the policy accepts is dropped")
	}
}
