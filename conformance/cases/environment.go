package cases

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/suite"
)

// customer has variables that a customer may set, and such that he may not.
var customer = &suite.Setup{Name: "customer variables", Timeout: 7, Memory: 512, Handler: "my.handler", Runtime: starts(lookAround),
	Env:        map[string]string{"MINE": "$HOME 'x'", "TZ": "Europe/Berlin", "LANG": "C", "NODE_OPTIONS": "-x", "AWS_LAMBDA_EXEC_WRAPPER": "/opt/wrapper"},
	Extensions: map[string][][]step{"watcher": starts(append(append([]step{}, lookAround...), registerAs(both), serve(0)))}}

// wantEnv wants variables of a process to be there, with values that match patterns.
func wantEnv(t *suite.T, env []string, want map[string]string) {
	for name, pattern := range want {
		v, there := variable(env, name)
		if ok, _ := regexp.MatchString("^(?:"+pattern+")$", v); !ok || !there {
			t.Errorf("%s is %q, want %s", name, v, pattern)
		}
	}
}

// hasNot wants variables not to be there.
func hasNot(t *suite.T, env []string, names ...string) {
	for _, name := range names {
		if v, there := variable(env, name); there {
			t.Errorf("%s is there: %q", name, v)
		}
	}
}

// inEnv is a case on the plain runtime's variables.
func inEnv(id string, want map[string]string) suite.Case {
	return suite.Case{ID: id, Setup: plain, Run: func(t *suite.T) { wantEnv(t, runtimeEnv(t), want) }}
}

// watcherEnv is the environment of the extension of the setup customer.
func watcherEnv(t *suite.T) []string { return t.First(t.Journal().By("watcher"), "env").List }

// environment is sections 6.1 to 6.3.
var environment = []suite.Case{
	inEnv("ENV-01", map[string]string{"AWS_LAMBDA_FUNCTION_NAME": `[A-Za-z0-9-_]+`, "AWS_LAMBDA_FUNCTION_VERSION": `\$LATEST`,
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769", "AWS_REGION": `[a-z0-9-]+`, "AWS_DEFAULT_REGION": `[a-z0-9-]+`}),
	{ID: "ENV-02", Setup: plain, Run: func(t *suite.T) { hasNot(t, runtimeEnv(t), "AWS_ACCESS_KEY", "AWS_CONTAINER_CREDENTIALS_FULL_URI") }},
	inEnv("ENV-03", map[string]string{"AWS_LAMBDA_RUNTIME_API": `[^:/]+:\d+`}),
	inEnv("ENV-04", map[string]string{"AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/.+", "AWS_LAMBDA_LOG_STREAM_NAME": `\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}`}),
	inEnv("ENV-05", map[string]string{"_HANDLER": `app\.handler`, "LAMBDA_TASK_ROOT": "/var/task", "LAMBDA_RUNTIME_DIR": "/var/runtime"}),
	{ID: "ENV-06", Setup: plain, Run: func(t *suite.T) { hasNot(t, runtimeEnv(t), "AWS_EXECUTION_ENV") }},
	inEnv("ENV-07", map[string]string{"AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand"}),
	inEnv("ENV-08", map[string]string{"AWS_XRAY_DAEMON_ADDRESS": `[\d.]+:\d+`, "_AWS_XRAY_DAEMON_ADDRESS": `[\d.]+`,
		"_AWS_XRAY_DAEMON_PORT": "2000", "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR"}),
	{ID: "ENV-09", Setup: plain, Run: func(t *suite.T) { hasNot(t, runtimeEnv(t), "_X_AMZN_TRACE_ID") }},
	inEnv("ENV-10", map[string]string{"LANG": `(en_US|C)\.UTF-8`, "TZ": ":UTC", "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
		"LD_LIBRARY_PATH": "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib"}),
	{ID: "ENV-11", Setup: plain, Run: func(t *suite.T) {
		hasNot(t, runtimeEnv(t), "AWS_LAMBDA_LOG_FORMAT", "AWS_LAMBDA_LOG_LEVEL")
	}},
	{ID: "ENV-12", Setup: plain, Run: func(t *suite.T) {
		hasNot(t, runtimeEnv(t), "AWS_LAMBDA_MAX_CONCURRENCY", "_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET")
	}},
	{ID: "ENV-13", Setup: plain, Run: func(t *suite.T) { hasNot(t, runtimeEnv(t), "_LAMBDA_SERVER_PORT") }},
	{ID: "ENV-14", Setup: customer, Run: func(t *suite.T) {
		wantEnv(t, runtimeEnv(t), map[string]string{"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512", "_HANDLER": `my\.handler`})
	}},
	{ID: "ENV-15", Setup: customer, Run: func(t *suite.T) {
		wantEnv(t, runtimeEnv(t), map[string]string{"TZ": "Europe/Berlin", "LANG": "C", "NODE_OPTIONS": "-x"})
	}},
	{ID: "ENV-18", Setup: customer, Run: func(t *suite.T) {
		v, _ := variable(runtimeEnv(t), "MINE")
		suite.Equal(t, "MINE", v, "$HOME 'x'")
	}},
	{ID: "ENV-19", Setup: plain, Run: func(t *suite.T) {
		known := regexp.MustCompile(`^(AWS_|_?LAMBDA_|_HANDLER=|_AWS_XRAY_|LANG=|TZ=|PATH=|LD_LIBRARY_PATH=)`)
		for _, kv := range runtimeEnv(t) {
			if !known.MatchString(kv) {
				t.Errorf("%s leaked in", kv)
			}
		}
		hasNot(t, runtimeEnv(t), "_LAMBDA_SB_ID", "_LAMBDA_LOG_FD", "_LAMBDA_SHARED_MEM_FD", "_LAMBDA_CONTROL_SOCKET", "_LAMBDA_DIRECT_INVOKE_SOCKET",
			"_LAMBDA_RUNTIME_LOAD_TIME", "_LAMBDA_CONSOLE_SOCKET", "_LAMBDA_TELEMETRY_API_PASSPHRASE")
	}},
	{ID: "ENV-20", Setup: customer, Run: func(t *suite.T) {
		wantEnv(t, watcherEnv(t), map[string]string{"MINE": `\$HOME 'x'`, "AWS_LAMBDA_FUNCTION_NAME": ".+", "AWS_LAMBDA_FUNCTION_VERSION": `\$LATEST`,
			"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512", "AWS_REGION": ".+", "AWS_LAMBDA_RUNTIME_API": ".+:.+", "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
			"PATH": ".+", "LD_LIBRARY_PATH": ".+"})
		hasNot(t, watcherEnv(t), "AWS_LAMBDA_LOG_FORMAT")
	}},
	{ID: "ENV-21", Setup: customer, Run: func(t *suite.T) {
		env := watcherEnv(t)
		for _, kv := range env {
			if strings.HasPrefix(kv, "_") {
				t.Errorf("%s is there", kv)
			}
		}
		hasNot(t, env, "AWS_EXECUTION_ENV", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_XRAY_CONTEXT_MISSING",
			"AWS_XRAY_DAEMON_ADDRESS", "LAMBDA_RUNTIME_DIR", "LAMBDA_TASK_ROOT")
	}},
}

// optOnly has its bootstrap in the layer only: a shell script that ends in its own way.
var optOnly = &suite.Setup{Name: "bootstrap in the layer", NoRuntime: true, Needs: []string{suite.Extensions}, Files: map[string]suite.File{
	"layer/bootstrap": {Mode: 0o755, Text: `#!/bin/sh
echo "bootstrap of the layer"
exit 9
`}}}

// looked is an entry of the plain runtime's first look around.
func looked(t *suite.T, name string) (text string, n int64, list []string, values map[string]string) {
	e := t.First(t.Journal().By("runtime"), name)
	return e.Text, e.N, e.List, e.Headers
}

// launch is sections 6.4 and 6.5.
var launch = []suite.Case{
	{ID: "ENV-23", Setup: optOnly, Run: func(t *suite.T) {
		t.FunctionError(t.Invoke("1"), "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: exit status 9")
		t.WaitLog("bootstrap of the layer")
	}},
	{ID: "ENV-24", Setup: plain, Run: func(t *suite.T) {
		cwd, _, _, _ := looked(t, "cwd")
		suite.Equal(t, "working directory", cwd, "/var/task")
	}},
	{ID: "ENV-26", Setup: customer, Run: func(t *suite.T) { // the platform only passes it
		wantEnv(t, runtimeEnv(t), map[string]string{"AWS_LAMBDA_EXEC_WRAPPER": "/opt/wrapper"})
	}},
	{ID: "ENV-28", Setup: customer, Run: func(t *suite.T) {
		j := t.Journal()
		for _, who := range []string{"runtime", "watcher"} {
			ids := t.First(j.By(who), "ids").Headers
			suite.Equal(t, "uid:gid of "+who, ids["uid"]+":"+ids["gid"], "993:990")
			suite.Equal(t, "process group of "+who, ids["pgrp"], ids["pid"])
		}
	}},
	{ID: "ENV-29", Setup: plain, Run: func(t *suite.T) {
		for _, path := range []string{"/var/task/x", "/opt/x", "/var/runtime/x", "/x", "/etc/x"} {
			_, j := t.Play(step{Op: "write", Path: path, Data: "x"})
			if t.One(j, "write").Error == "" {
				t.Errorf("%s could be written", path)
			}
		}
	}},
	{ID: "ENV-30", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play(step{Op: "stat", Path: "/tmp"}, step{Op: "stat", Name: "fs", Method: "fs", Path: "/tmp"}, step{Op: "write", Path: "/tmp/w", Data: "x"})
		t.Contains("mode of /tmp", t.One(j, "stat").Text, "rwxrwxrwx")
		if n := t.One(j, "fs").N; n < 450 || n > 560 {
			t.Errorf("/tmp has %d MiB, want 512", n)
		}
		suite.Equal(t, "writing to /tmp", t.One(j, "write").Error, "")
	}},
	{ID: "ENV-31", Setup: plain, Run: func(t *suite.T) {
		_, _, fds, _ := looked(t, "fds")
		if !slices.Contains(fds, "0 /dev/null") {
			t.Errorf("descriptors %q", fds)
		}
	}},
	{ID: "ENV-33", Setup: customer, Run: func(t *suite.T) {
		_, j := t.Play()
		e := t.One(j, "next")
		deadline, err := time.ParseDuration(e.Headers["Lambda-Runtime-Deadline-Ms"] + "ms")
		if left := deadline - time.Duration(e.At)*time.Microsecond; err != nil || left > 7*time.Second || left < 6*time.Second {
			t.Errorf("%v are left of a timeout of 7 s, %v", left, err)
		}
	}},
	{ID: "ENV-34", Setup: plain, Run: func(t *suite.T) {
		_, n, _, _ := looked(t, "rlimit")
		suite.Equal(t, "RLIMIT_NOFILE", n, int64(1024))
	}},
	{ID: "ENV-35", Setup: plain, Run: func(t *suite.T) {
		const limit = 6 << 20
		suite.Equal(t, "echo of 6 MB", len(t.Invoke(`"`+strings.Repeat("x", limit-2)+`"`).Body), limit)
	}},
	{ID: "ENV-36", Setup: ten, Run: func(t *suite.T) { suite.Equal(t, "answer with ten extensions", string(t.Invoke("1").Body), "1") }},
	{ID: "ENV-37", Setup: customer, Run: func(t *suite.T) {
		j := t.Journal()
		want := 3
		if v, there := variable(runtimeEnv(t), "_LAMBDA_TELEMETRY_LOG_FD"); there && v != "" {
			want = 4
		}
		suite.Equal(t, "number of the runtime's descriptors", len(t.First(j.By("runtime"), "fds").List), want)
		suite.Equal(t, "number of the extension's descriptors", len(t.First(j.By("watcher"), "fds").List), 3)
	}},
}
