package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rootfs"
)

// parseServe parses a command line of serve, with a configuration file if yaml is not "", and
// checks it.
func parseServe(t *testing.T, yaml string, args ...string) (*serveOptions, error) {
	t.Helper()
	o := newServeOptions()
	flags, settings := pflag.NewFlagSet("serve", pflag.ContinueOnError), pflag.NewFlagSet("settings", pflag.ContinueOnError)
	o.addServeFlags(flags)
	o.addServeSettings(settings)
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if yaml != "" {
		o.config = filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(o.config, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := applySections(o.config, flags, settings, map[string]section{"networks": o.addNetwork, "runtimes": o.addRuntime}); err != nil {
			return o, err
		}
	}
	return o, o.completeServe()
}

// Without flags serve listens on loopback and wants signatures; functions have no network, and
// those runtimes that the host has.
func TestServeDefaults(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	o, err := parseServe(t, "")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := o.serveConfig(runc.Host{})
	if err != nil {
		t.Fatal(err)
	}
	if o.listen != "127.0.0.1:9000" || o.unsigned || cfg.Control.Unsigned || cfg.Worker.Unsigned || cfg.Control.Region != "us-east-1" {
		t.Errorf("listen %s, unsigned %v, %+v", o.listen, o.unsigned, cfg.Control)
	}
	if len(cfg.Networks) != 1 || cfg.Networks[0].Name != "none" || cfg.Networks[0].Network.Mode != isolation.NetworkNone {
		t.Errorf("networks %+v", cfg.Networks)
	}
	var names []string
	for _, r := range cfg.Runtimes {
		if names = append(names, r.Name); !r.Optional || r.Base != rootfs.HostBase || r.Layers != nil {
			t.Errorf("runtime %+v", r)
		}
	}
	if !slices.Equal(names, rootfs.RuntimeNames()) {
		t.Errorf("runtimes %v", names)
	}
	if cfg.HostKey != "" || cfg.Group != "sandboxd" || cfg.FreeBytes != 1<<30 || cfg.TreeBytes != 0 || cfg.Concurrency != 0 || cfg.Control.SeriesLimit != 100 {
		t.Errorf("%+v", cfg)
	}
}

// What flags and the configuration file say reaches the daemon.
func TestServeConfig(t *testing.T) {
	o, err := parseServe(t, `
region: eu-central-1
account-id: "000000000000"
egress-range: 172.20.0.0/16
extracted-size: 3
free-space: 2
metrics-functions: 7
concurrency: 5
networks:
  web:
    allow: [11.0.0.0/8:443/tcp, "[2a00::/16]"]
    allow-name: ["*.example.com"]
  lan2:
    unsafe-host-network: true
runtimes:
  python3.11:
    rootfs: /srv/base
    layer: [a.zip, b]
  provided.al2023:
`, "--concurrency=6", "--host-key=k", "--unsigned-loopback", "--listen=[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := o.serveConfig(runc.Host{})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Control.Region != "eu-central-1" || cfg.Worker.Region != "eu-central-1" || cfg.Control.AccountID != "000000000000" || !cfg.Control.Unsigned || !cfg.Worker.Unsigned {
		t.Errorf("%+v", cfg.Control)
	}
	if cfg.TreeBytes != 3<<20 || cfg.FreeBytes != 2<<20 || cfg.Control.SeriesLimit != 7 || cfg.Concurrency != 6 || !filepath.IsAbs(cfg.HostKey) || filepath.Base(cfg.HostKey) != "k" {
		t.Errorf("%+v", cfg)
	}
	if len(cfg.Networks) != 3 || cfg.Networks[0].Name != "none" || cfg.Networks[1].Name != "web" || cfg.Networks[2].Name != "lan2" {
		t.Fatalf("networks %+v", cfg.Networks)
	}
	if n := cfg.Networks[1].Network; n.Mode != isolation.NetworkEgress || len(n.Policy.Allow) != 2 || len(n.Policy.Names) != 1 || n.Range4.String() != "172.20.0.0/16" {
		t.Errorf("web is %+v", n)
	}
	if n := cfg.Networks[2].Network; n.Mode != isolation.NetworkHost {
		t.Errorf("lan2 is %+v", n)
	}
	want := []daemon.Runtime{{Name: "python3.11", Base: "/srv/base", Layers: []string{"a.zip", "b"}}, {Name: "provided.al2023", Base: rootfs.HostBase}}
	if !slices.EqualFunc(cfg.Runtimes, want, func(a, b daemon.Runtime) bool {
		return a.Name == b.Name && a.Base == b.Base && a.Optional == b.Optional && slices.Equal(a.Layers, b.Layers)
	}) {
		t.Errorf("runtimes %+v", cfg.Runtimes)
	}
}

// Sections that are wrong are refused, with their place and what to do.
func TestServeConfigErrors(t *testing.T) {
	for name, tt := range map[string]struct{ yaml, want string }{
		"sections are mappings":         {"networks: [web]\n", ":1: networks: must be a mapping of names to settings"},
		"a network of the wrong form":   {"networks:\n  Web: {allow: [11.0.0.0/8]}\n", `line 2: "Web": the name of a network has 1 to 32 digits and lower-case letters`},
		"a network with a hyphen":       {"networks:\n  a-b: {allow: [11.0.0.0/8]}\n", "lower-case letters"},
		"a long name":                   {"networks:\n  " + strings.Repeat("a", 33) + ": {allow: [11.0.0.0/8]}\n", "1 to 32"},
		"the network none":              {"networks:\n  none: {allow: [11.0.0.0/8]}\n", "is not none"},
		"a network twice":               {"networks:\n  web: {allow: [11.0.0.0/8]}\n  web: {allow: [11.0.0.0/8]}\n", "line 3: web is there twice"},
		"a network of nothing":          {"networks:\n  web:\n", "network web allows nothing: add allow or allow-name"},
		"a host network that is denied": {"networks:\n  web: {unsafe-host-network: false}\n", "network web allows nothing"},
		"a host network with rules":     {"networks:\n  web: {unsafe-host-network: true, allow: [11.0.0.0/8]}\n", "network web: unsafe-host-network has no rules"},
		"a rule of no form":             {"networks:\n  web: {allow: [here]}\n", "line 2: web: allow:"},
		"a name of no form":             {"networks:\n  web: {allow-name: ['a..b']}\n", "line 2: web: allow-name:"},
		"a setting that is not its":     {"networks:\n  web: {rootfs: x}\n", "line 2: web: rootfs is no setting of it, or there twice; it has allow, allow-name, unsafe-host-network"},
		"a setting twice":               {"networks:\n  web: {allow: [11.0.0.0/8], allow: [11.0.0.0/8]}\n", "there twice"},
		"a network that is a list":      {"networks:\n  web: [11.0.0.0/8]\n", "line 2: web: must be a mapping of settings"},
		"an unknown runtime":            {"runtimes:\n  python2.7: {rootfs: x}\n", `"python2.7": is no runtime; there are [`},
		"a runtime without a base":      {"runtimes:\n  python3.11: {rootfs: ''}\n", "runtime python3.11: rootfs must not be empty"},
		"six layers":                    {"runtimes:\n  python3.11: {layer: [a, b, c, d, e, f]}\n", "at most 5"},
		"a setting of run":              {"memory: 512\n", "memory: unknown key"},
		"no series":                     {"metrics-functions: 10001\n", "metrics-functions"},
		"sections twice":                {"runtimes: {}\nruntimes: {}\n", ":2: runtimes is set twice"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseServe(t, tt.yaml); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}

// Without TLS, and without signatures, only this host may connect.
func TestServeEndpoint(t *testing.T) {
	for args, want := range map[string]string{
		"--listen=127.0.0.1:0":                       "",
		"--listen=127.9.9.9:1":                       "",
		"--listen=localhost:0":                       "",
		"--listen=[::1]:0":                           "",
		"--listen=127.0.0.1:0 --unsigned-loopback":   "",
		"--listen=:9000":                             "--listen :9000 is not a loopback address",
		"--listen=0.0.0.0:0":                         "is not a loopback address",
		"--listen=[::]:0":                            "is not a loopback address",
		"--listen=192.0.2.1:0":                       "is not a loopback address",
		"--listen=host.example:0":                    "is not a loopback address",
		"--listen=:9000 --unsigned-loopback":         "--unsigned-loopback: --listen :9000 is not a loopback address",
		"--listen=192.0.2.1:0 --unsigned-loopback":   "everybody who can connect could change functions",
		"--listen=[::]:0 --unsigned-loopback":        "everybody who can connect could change functions",
		"--unsigned-loopback=yes-please":             "unsigned-loopback",
		"--listen=127.0.0.1":                         "127.0.0.1:9000",
		"--state-dir=":                               "must not be empty",
		"--concurrency=0":                            "from 1",
		"--id-base=1048576":                          "systemd",
		"--run-dir=" + strings.Repeat("/x", 60):      "at most 80 bytes",
		"--memory=512":                               "unknown flag",
		"--region=mars --listen=127.0.0.1:0":         "a region such as us-east-1",
		"--listen=127.0.0.1:0 --unsigned-loopback=0": "",
	} {
		if _, err := parseServe(t, "", strings.Fields(args)...); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", args, err, want)
		}
	}
	o := newServeOptions()
	o.listen = "localhost:0" // whatever it stands for on this host
	for ip, fine := range map[string]bool{"127.0.0.1": true, "::1": true, "192.0.2.1": false, "0.0.0.0": false, "::": false} {
		if err := o.checkListener(&net.TCPAddr{IP: net.ParseIP(ip), Port: 1}); (err == nil) != fine {
			t.Errorf("localhost is %s: %v", ip, err)
		}
	}
}

// The host key is the flag's, else that of systemd, else one in the state folder.
func TestHostKeyFile(t *testing.T) {
	folder := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", folder)
	o := newServeOptions()
	if got := o.hostKeyFile(); got != "" {
		t.Errorf("%q, although the service has no such credential", got)
	}
	credential := filepath.Join(folder, "host-key")
	if err := os.WriteFile(credential, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := o.hostKeyFile(); got != credential {
		t.Errorf("%q; want %q", got, credential)
	}
	o.hostKey = "/root/key"
	if got := o.hostKeyFile(); got != "/root/key" {
		t.Errorf("%q; want that of the flag", got)
	}
}
