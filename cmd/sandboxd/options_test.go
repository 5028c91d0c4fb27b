package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rootfs/store"
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
	o.aws.given = o.settings.credentials
	if yaml == "" {
		return o, nil
	}
	file := filepath.Join(t.TempDir(), "c.yaml")
	o.config = file
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return o, applyConfig(file, flags, settings)
}

// The configuration may come from a pipe, which can be read once only, and is read again
// all the same; what has no descriptor is refused.
func TestConfigFromPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("memory: 512\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for range 3 {
		o := newOptions()
		flags, settings := pflag.NewFlagSet("run", pflag.ContinueOnError), pflag.NewFlagSet("settings", pflag.ContinueOnError)
		o.addFlags(flags)
		o.addSettings(settings)
		path := fmt.Sprintf("/dev/fd/%d", r.Fd())
		if err := applyConfig(path, flags, settings); err != nil || o.function.MemoryMB != 512 {
			t.Errorf("memory %d, %v; want 512", o.function.MemoryMB, err)
		}
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(fifo, os.O_RDWR, 0) // else opening it waits
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := applyConfig(os.DevNull, nil, nil); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	if err := applyConfig(filepath.Dir(fifo), nil, nil); err == nil || !strings.Contains(err.Error(), filepath.Dir(fifo)+" is a directory") {
		t.Errorf("a directory: %v", err)
	}
	if err := applyConfig(fifo, nil, nil); err == nil || !strings.Contains(err.Error(), fifo+" is not a regular file") {
		t.Errorf("%v", err)
	}
}

func TestDefaults(t *testing.T) {
	o, err := parse(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if o.function.MemoryMB != 128 || o.function.Timeout != 3*time.Second || o.function.EphemeralMB != 512 { // ENV-30, ENV-32, ENV-33
		t.Errorf("memory %d, timeout %v, /tmp %d", o.function.MemoryMB, o.function.Timeout, o.function.EphemeralMB)
	}
	if o.listen != "127.0.0.1:9000" || o.function.Network != "none" || o.logDescriptors != "pipe" {
		t.Errorf("listen %s, network %s, descriptors %s", o.listen, o.function.Network, o.logDescriptors)
	}
}

func TestTimeoutForms(t *testing.T) {
	for s, want := range map[string]time.Duration{"3": 3 * time.Second, "3s": 3 * time.Second, "1m": time.Minute, "900": 15 * time.Minute} {
		if o, err := parse(t, "", "--timeout", s); err != nil || o.function.Timeout != want {
			t.Errorf("%s: %v, %v; want %v", s, o.function.Timeout, err, want)
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
	if o.function.MemoryMB != 512 || !slices.Equal(o.source.Layers, []string{"c"}) {
		t.Errorf("memory %d, layers %v: flags must win", o.function.MemoryMB, o.source.Layers)
	}
	if o.function.Timeout != 5*time.Second || o.linger != 0 || !maps.Equal(o.function.Env, map[string]string{"STAGE": "test", "EMPTY": ""}) {
		t.Errorf("timeout %v, linger %v, env %v", o.function.Timeout, o.linger, o.function.Env)
	}
	if n := o.networks()[0]; len(n.Policy.Allow) != 2 || len(n.Policy.Names) != 1 || n.Range4.String() != "172.20.0.0/16" {
		t.Errorf("network %+v", n)
	}
	if s := o.settings; s.shutdownExternal != 3*time.Second || s.billInit || s.region != "eu-central-1" {
		t.Errorf("settings %+v", s)
	}
	if cfg := o.daemonConfig(runc.Host{}); cfg.Worker.Life.StreamRate != 2<<20 { // RT-71
		t.Errorf("stream rate %d", cfg.Worker.Life.StreamRate)
	}
	if f := o.function; f.ApplicationLogLevel != "TRACE" || f.SystemLogLevel != "WARN" { // ENV-11, LOG-41
		t.Errorf("log levels %q, %q", f.ApplicationLogLevel, f.SystemLogLevel)
	}
	for _, yaml := range []string{"memory: 256\n---\n", "---\nmemory: 256\n...\n"} {
		if _, err := parse(t, yaml); err != nil {
			t.Errorf("%q: %v", yaml, err)
		}
	}
	if o, err := parse(t, "env: [A1=x, B1=y=z]\n"); err != nil || !maps.Equal(o.function.Env, map[string]string{"A1": "x", "B1": "y=z"}) {
		t.Errorf("env as a list: %v, %v", o.function.Env, err)
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
		"twice":           {"memory: 256\nmemory: 512\n", "memory is set twice"},
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
		"two documents":   {"memory: 256\n---\nmemory: 512\n", ":3: a second YAML document is not allowed"},
		"a broken second": {"memory: 256\n---\na: b: c\n", "mapping values are not allowed"},
		"negative age":    {"unused-age: -1h\n", "unused-age: \"-1h\" must be a duration"},
		"no size":         {"unused-size: 1.5\n", "must be a number from 1 to"},
		"negative size":   {"unused-size: -1\n", "or 0"},
		"six layers":      {"layer: [a, b, c, d, e, f]\n", "at most 5"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parse(t, tt.yaml); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}

// How much stays that nothing uses: 0 sets no bound.
func TestRetention(t *testing.T) {
	for yaml, want := range map[string]store.Retention{
		"":                                   {Age: 7 * 24 * time.Hour, Bytes: 5 << 30},
		"unused-age: 30m\nunused-size: 10\n": {Age: 30 * time.Minute, Bytes: 10 << 20},
		"unused-age: 0\n":                    {Age: store.NoAge, Bytes: 5 << 30},
		"unused-size: 0\n":                   {Age: 7 * 24 * time.Hour, Bytes: store.NoBytes},
	} {
		o, err := parse(t, yaml)
		if err != nil {
			t.Fatal(err)
		}
		if got := o.daemonConfig(runc.Host{}).Keep; got != want {
			t.Errorf("%q: %+v, want %+v", yaml, got, want)
		}
	}
}

// LC-94, RT-66: ways to initialize that do not go together.
func TestInitializationFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--snap-start":                                  "",
		"--provisioned=2 --concurrency=2":               "",
		"--managed=4 --log-format=JSON":                 "",
		"--snap-start --provisioned=1":                  "cannot be used together",
		"--snap-start --ephemeral-storage=513":          "512 MB",
		"--snap-start --image=x":                        "container images",
		"--provisioned=3 --concurrency=2":               "more than --concurrency",
		"--provisioned=3 --event=-":                     "--event",
		"--managed=4":                                   "add --log-format JSON",
		"--managed=4 --log-format=JSON --snap-start":    "--managed cannot be used with",
		"--managed=4 --log-format=JSON --provisioned=1": "--managed cannot be used with",
	} {
		o, err := parse(t, "", strings.Fields(args)...)
		if err == nil {
			if o.source.Code = "x"; o.source.Image != "" {
				o.source.Code = ""
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
		"XX=" + strings.Repeat("v", 4096-2),
	} {
		if _, err := parse(t, "", "--env", ok); err != nil {
			t.Errorf("%.40s: %v", ok, err)
		}
	}
	for _, bad := range []string{
		"", "A", "A=x", "=x", "1A=x", "_HANDLER=x", "_X=1", "A-B=x", "A B=x", "Ä1=x", "NUL=a\x00b",
		"AWS_LAMBDA_RUNTIME_API=x", "AWS_ACCESS_KEY_ID=x", "LAMBDA_TASK_ROOT=/", "AWS_EXECUTION_ENV=x",
		"XX=" + strings.Repeat("v", 4096-1),
	} {
		if _, err := parse(t, "", "--env", bad); err == nil {
			t.Errorf("%.40s was accepted", bad)
		}
	}
	if _, err := parse(t, "", "--env", "AA="+strings.Repeat("v", 3000), "--env", "BB="+strings.Repeat("v", 3000)); err == nil {
		t.Error("two variables of 3,000 bytes were accepted")
	}
}

// What the flags say reaches the daemon's configuration.
func TestDaemonConfig(t *testing.T) {
	o, err := parse(t, "account-id: \"000000000000\"\nshutdown-runtime-share: 50\nlinger: 0\naccess-key-id: a\nsecret-access-key: b\nsession-token: s\n",
		"--function-name", "fn", "--log-descriptors", "socket", "--log-format", "JSON", "--strict", "--pool", "0", "--id-base", "1879048192")
	if err != nil {
		t.Fatal(err)
	}
	cfg := o.daemonConfig(runc.Host{})
	if w := cfg.Worker; w.AccountID != "000000000000" || w.Life.RuntimeShare != 0.5 || w.Life.Linger != 0 || w.Descriptors != "socket" || w.LogFormat != "JSON" || !w.Strict {
		t.Errorf("%+v", w)
	}
	if o.function.Name != "fn" || cfg.Pool != 0 || cfg.IDBase != 0x70000000 || cfg.Networks[0].Name != o.function.Network {
		t.Errorf("%+v", cfg)
	}
	if err := os.WriteFile(o.config, []byte("access-key-id: a\nsecret-access-key: b\nsession-token: fresh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := cfg.Renew(); err != nil || c.SessionToken != "fresh" {
		t.Errorf("credentials %+v, %v", c, err)
	}
	if err := os.WriteFile(o.config, []byte("access-key-id: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := cfg.Renew(); err == nil || !strings.Contains(err.Error(), "without --secret-access-key") {
		t.Errorf("half of the credentials: %+v, %v", c, err)
	}
	if err := os.Truncate(o.config, 0); err != nil { // an editor is saving it
		t.Fatal(err)
	}
	if c, err := cfg.Renew(); err == nil {
		t.Errorf("credentials %+v of an empty file", c)
	}
}

func TestOpenEvent(t *testing.T) {
	if _, err := openEvent(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing file was accepted")
	}
}
