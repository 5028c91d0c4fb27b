package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/rootfs"
)

// parse parses a command line of run, with a configuration file if yaml is not "".
func parse(t *testing.T, yaml string, args ...string) (*options, error) {
	t.Helper()
	o := newOptions()
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	settings := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	o.addFlags(flags)
	o.addSettings(settings)
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if yaml == "" {
		return o, nil
	}
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return o, applyConfig(file, flags, settings)
}

func TestDefaults(t *testing.T) {
	o, err := parse(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if o.memoryMB != 128 || o.timeout != 3*time.Second || o.ephemeralMB != 512 { // ENV-30, ENV-32, ENV-33
		t.Errorf("memory %d, timeout %v, /tmp %d", o.memoryMB, o.timeout, o.ephemeralMB)
	}
	if o.listen != "127.0.0.1:9000" || o.network != "none" || o.logDescriptors != "pipe" {
		t.Errorf("listen %s, network %s, descriptors %s", o.listen, o.network, o.logDescriptors)
	}
}

func TestTimeoutForms(t *testing.T) {
	for s, want := range map[string]time.Duration{"3": 3 * time.Second, "3s": 3 * time.Second, "1m": time.Minute, "900": 15 * time.Minute} {
		if o, err := parse(t, "", "--timeout", s); err != nil || o.timeout != want {
			t.Errorf("%s: %v, %v; want %v", s, o.timeout, err, want)
		}
	}
}

func TestConfigFile(t *testing.T) {
	o, err := parse(t, `
memory: 256
timeout: 5
env:
  STAGE: test
  EMPTY: ""
layer: [a, b.zip]
allow: [11.0.0.0/8:443/tcp, "[2a00::/16]"]
allow-name: ["*.example.com"]
egress-range: 172.20.0.0/16
linger: 0s
shutdown-window: 3s
bill-init: false
stream-rate: 2048
region: eu-central-1
application-log-level: TRACE
system-log-level: WARN
`, "--memory", "512", "--layer", "c")
	if err != nil {
		t.Fatal(err)
	}
	if o.memoryMB != 512 || !slices.Equal(o.layers, []string{"c"}) {
		t.Errorf("memory %d, layers %v: flags must win", o.memoryMB, o.layers)
	}
	if o.timeout != 5*time.Second || o.linger != 0 || !maps.Equal(o.env, map[string]string{"STAGE": "test", "EMPTY": ""}) {
		t.Errorf("timeout %v, linger %v, env %v", o.timeout, o.linger, o.env)
	}
	if n := networkOf(o); len(n.Policy.Allow) != 2 || len(n.Policy.Names) != 1 || n.Range4.String() != "172.20.0.0/16" {
		t.Errorf("network %+v", n)
	}
	if s := o.settings; s.shutdownExternal != 3*time.Second || s.billInit || s.region != "eu-central-1" {
		t.Errorf("settings %+v", s)
	}
	if st := lifeOf(o, &rootfs.Function{}).Settings.Stream; st.Rate != 2<<20 || st.Burst != 6<<20 || st.Bytes != 200<<20 { // RT-71
		t.Errorf("stream limits %+v", st)
	}
	if f := lifeOf(o, &rootfs.Function{}).Function; f.LogLevel != "TRACE" || f.SystemLogLevel != telemetry.LevelWarn { // ENV-11, LOG-41
		t.Errorf("log levels %q, %q", f.LogLevel, f.SystemLogLevel)
	}
	if o, err := parse(t, "env: [A1=x, B1=y=z]\n"); err != nil || !maps.Equal(o.env, map[string]string{"A1": "x", "B1": "y=z"}) {
		t.Errorf("env as a list: %v, %v", o.env, err)
	}
	if _, err := parse(t, "# nothing\n"); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

func TestConfigFileErrors(t *testing.T) {
	for name, tt := range map[string]struct{ yaml, want string }{
		"unknown key":     {"memory: 256\nmemroy: 512\n", ":2: memroy: unknown key"},
		"config in it":    {"config: x\n", "unknown key"},
		"out of bounds":   {"timeout: 901\n", ":1: timeout: \"901\" must be whole seconds"},
		"twice":           {"memory: 256\nmemory: 512\n", "memory is there twice"},
		"no mapping":      {"- a\n", "must be a mapping"},
		"list for one":    {"memory: [1, 2]\n", "must be a single value"},
		"nothing for one": {"memory:\n", "must be a single value"},
		"one for list":    {"layer: {a: b}\n", "must be a list"},
		"nested env":      {"env: {A1: [x]}\n", "single value"},
		"nested list":     {"layer: [[a]]\n", "single value"},
		"reserved env":    {"env: {AWS_SESSION_TOKEN: x}\n", "reserved"},
		"no yaml":         {"a: b: c\n", "mapping values are not allowed"},
		"level":           {"system-log-level: ERROR\n", "system-log-level"},
		"public range":    {"egress-range: 11.0.0.0/8\n", "private IPv4 range"},
		"six layers":      {"layer: [a, b, c, d, e, f]\n", "at most 5"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parse(t, tt.yaml); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}

// LC-94, RT-66: ways to initialize that do not go together.
func TestInitializationFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--snap-start":                                  "",
		"--provisioned=2 --concurrency=2":               "",
		"--managed=4 --log-format=JSON":                 "",
		"--snap-start --provisioned=1":                  "exclude each other",
		"--snap-start --ephemeral-storage=513":          "512 MB",
		"--snap-start --image=x":                        "container images",
		"--provisioned=3 --concurrency=2":               "more than --concurrency",
		"--provisioned=3 --event=-":                     "--event",
		"--managed=4":                                   "add --log-format JSON",
		"--managed=4 --log-format=JSON --snap-start":    "excludes",
		"--managed=4 --log-format=JSON --provisioned=1": "excludes",
	} {
		o, err := parse(t, "", strings.Fields(args)...)
		if err == nil {
			if o.code = "x"; o.image != "" {
				o.code = ""
			}
			err = o.complete()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", args, err, want)
		}
	}
}

// ENV-16, ENV-17, ENV-18.
func TestEnv(t *testing.T) {
	for _, ok := range []string{
		"AB=", "A1=x=y", "NODE_OPTIONS=--x", "PATH=/x", "TZ=UTC", "AWS_LAMBDA_EXEC_WRAPPER=/opt/w", "AWS_LAMBDA_LOG_LEVEL=DEBUG", "LANG=C",
		"XX=" + strings.Repeat("v", maxEnvBytes-2),
	} {
		if _, err := parse(t, "", "--env", ok); err != nil {
			t.Errorf("%.40s: %v", ok, err)
		}
	}
	for _, bad := range []string{
		"", "A", "A=x", "=x", "1A=x", "_HANDLER=x", "_X=1", "A-B=x", "A B=x", "Ä1=x", "NUL=a\x00b",
		"AWS_LAMBDA_RUNTIME_API=x", "AWS_ACCESS_KEY_ID=x", "LAMBDA_TASK_ROOT=/", "AWS_EXECUTION_ENV=x",
		"XX=" + strings.Repeat("v", maxEnvBytes-1),
	} {
		if _, err := parse(t, "", "--env", bad); err == nil {
			t.Errorf("%.40s was accepted", bad)
		}
	}
	if _, err := parse(t, "", "--env", "AA="+strings.Repeat("v", 3000), "--env", "BB="+strings.Repeat("v", 3000)); err == nil {
		t.Error("two variables of 3,000 bytes were accepted")
	}
}

func TestSpecOf(t *testing.T) {
	o, err := parse(t, "", "--memory", "10240")
	if err != nil {
		t.Fatal(err)
	}
	f := &rootfs.Function{Tree: rootfs.Tree{
		Dirs:   []string{"/usr"},
		Links:  []rootfs.Link{{Path: "/lib", Target: "usr/lib"}},
		Mounts: []rootfs.Mount{{Target: "/usr", Sources: []string{"/usr"}}},
	}}
	spec := specOf(o, f, "/t.ext4")
	if spec.Limits != (isolation.Limits{MemoryBytes: 10 << 30, CPU: 10240.0 / 1769, PIDs: 1024}) { // ENV-32, ENV-34
		t.Errorf("limits %+v", spec.Limits)
	}
	if !slices.Equal(spec.Domains, []string{"runtime"}) || spec.Tmp.Template != "/t.ext4" || len(spec.Mounts) != 1 || spec.Root.Links[0].Target != "usr/lib" {
		t.Errorf("%+v", spec)
	}
	f.Extensions = []string{"agent"}
	if spec := specOf(o, f, ""); !slices.Equal(spec.Domains, []string{"runtime", "extension"}) {
		t.Errorf("with an extension: domains %v", spec.Domains)
	}
	f.ExtensionsDisabled = true
	if spec := specOf(o, f, ""); !slices.Equal(spec.Domains, []string{"runtime"}) {
		t.Errorf("with extensions disabled (EX-05): domains %v", spec.Domains)
	}
}

func TestLifeOf(t *testing.T) {
	o, err := parse(t, "account-id: \"000000000000\"\nshutdown-runtime-share: 50\nlinger: 0\n", "--function-name", "fn", "--log-descriptors", "socket")
	if err != nil {
		t.Fatal(err)
	}
	cfg := lifeOf(o, &rootfs.Function{Bootstrap: "/var/task/bootstrap"})
	if cfg.Function.ARN != "arn:aws:lambda:us-east-1:000000000000:function:fn" || cfg.Function.LogGroup != "/aws/lambda/fn" || cfg.Function.Version != "$LATEST" {
		t.Errorf("%+v", cfg.Function)
	}
	if s := cfg.Settings; s.RuntimeShare != 0.5 || s.Linger != 0 || s.Descriptors != telemetry.Sockets || s.KillWait == 0 {
		t.Errorf("%+v", s)
	}
}

func TestSandboxIDs(t *testing.T) {
	for name, want := range map[string]string{
		"function": "function-", "My_Func": "my-func-", strings.Repeat("x", 64): strings.Repeat("x", 31) + "-", "_": "", "--a--": "a-",
	} {
		id, err := sandboxID(idPrefix(name))
		if err != nil || !strings.HasPrefix(id, want) || len(id) != len(want)+8 || len(id) > 40 {
			t.Errorf("%s: %q, %v; want %s and eight digits", name, id, err, want)
		}
	}
}

func TestReadEvent(t *testing.T) {
	if b, err := readEvent("-", strings.NewReader(`{"a":1}`)); err != nil || string(b) != `{"a":1}` {
		t.Errorf("%s, %v", b, err)
	}
	if b, err := readEvent("-", strings.NewReader("")); err != nil || string(b) != "{}" { // INV-09
		t.Errorf("nothing: %s, %v", b, err)
	}
	for name, in := range map[string]string{
		"is not JSON":    "{",
		"over the limit": `"` + strings.Repeat("x", maxEventBytes) + `"`,
	} {
		if _, err := readEvent("-", strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
	if _, err := openEvent(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing file was accepted")
	}
}
