package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rootfs"
)

// serveOptions holds the flags of `serve` and the settings of its configuration file. Those
// that run has too are in options.
type serveOptions struct {
	options
	concurrency    int // most sandboxes at once; 0 is what memory allows
	treeMB, freeMB int
	unsigned       bool // requests without a signature are taken on loopback
	hostKey        string
	store          storeOptions
	seriesLimit    int // most functions that have series of their own in the metrics
	logs           logOptions

	tls    daemon.KeyPairFiles
	limits limitOptions

	networks []*namedNetwork
	folders  []*message.Folder
	roles    []*namedRole
	runtimes []*daemon.Runtime // nil: what the host has
}

// namedNetwork is a network of the configuration file.
type namedNetwork struct {
	name   string
	policy isolation.Policy
	host   bool // the network of the host
}

// Flags and settings that serve shares with run.
var (
	sharedFlags = []string{"region", "strict", "listen", "config", "drain-timeout", "log-format", "log-level", "log-descriptors",
		"pool", "linger", "state-dir", "run-dir", "id-base"}
	sharedSettings = []string{"account-id", "init-timeout", "idle-timeout", "warm-memory", "shutdown-window", "shutdown-window-internal",
		"shutdown-runtime-share", "bill-init", "stream-rate", "egress-range", "egress-range6", "unused-age", "unused-size"}
)

// newServeOptions returns options with their defaults.
func newServeOptions() *serveOptions {
	return &serveOptions{options: *newOptions(), freeMB: 1 << 10, seriesLimit: 100, limits: newLimitOptions(), logs: defaultLogs}
}

func serveCommand() *cobra.Command {
	o := newServeOptions()
	flags, settings := pflag.NewFlagSet("flags", pflag.ContinueOnError), pflag.NewFlagSet("settings", pflag.ContinueOnError)
	o.addServeFlags(flags)
	o.addServeSettings(settings)
	cmd := &cobra.Command{
		Use:   "serve [flags]",
		Short: "Serve many functions, which the Lambda API makes",
		Long: `serve is a daemon for many functions. They are made, changed and invoked by the Lambda API,
as with the AWS command line or an SDK whose endpoint is the address of --listen. The
functions and their code are kept below --state-dir.

The file of --config has the networks, runtimes, folders and roles that functions can choose:

  networks:
    web:                       # chosen by VpcConfig.SubnetIds=[subnet-web]
      allow: [10.0.0.0/8:443]
      allow-name: ['*.example.com']
  runtimes:
    python3.11:
      rootfs: host             # or a DIR
      layer: [/srv/python3.11-layer.zip]
  folders:
    code: /srv/functions       # chosen by Code={S3Bucket=hot-reload,S3Key=/srv/functions/PATH}
  roles:
    reader:                    # chosen by Role=arn:aws:iam::ACCOUNT:role/reader
      credentials: /etc/sandboxd/reader.credentials

Without networks there is only the loopback. Without runtimes there are those whose
interpreter the host has.

Keys that only the file of --config has, with their defaults:
` + describe(settings) + `

Exit codes: 0 it ended in order, on SIGTERM or SIGINT; 2 an error.`,
		Example: `  sudo sandboxd serve
  sudo sandboxd serve --config sandboxd.yaml --state-dir /srv/functions`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.config != "" {
				if err := applySections(o.config, cmd.Flags(), settings, o.sections()); err != nil {
					return err
				}
			}
			if err := o.completeServe(); err != nil {
				return err
			}
			if err := needRoot(cmd); err != nil {
				return err
			}
			host, err := daemon.Become(cmd.Context(), uint32(o.idBase))
			if err != nil {
				return err
			}
			return o.serve(cmd.Context(), host, daemon.Streams{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr()})
		},
	}
	cmd.Flags().AddFlagSet(flags)
	return cmd
}

// addServeFlags defines the flags of serve.
func (o *serveOptions) addServeFlags(f *pflag.FlagSet) {
	all := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.addFlags(all)
	for _, name := range sharedFlags {
		f.AddFlag(all.Lookup(name))
	}
	cli.Switch(f, &o.unsigned, "unsigned-loopback", "take requests without a signature, from this host only: --listen must be a loopback address")
	f.StringVar(&o.tls.Certificate, "tls-cert", "", "`FILE` with the certificate of --listen and those of its issuers, in PEM; read again when it changes")
	f.StringVar(&o.tls.Key, "tls-key", "", "`FILE` of root with the private key of the certificate, in PEM")
	f.StringVar(&o.hostKey, "host-key", "", "`FILE` with the key that encrypts secrets in the store (default: the systemd credential "+hostKeyCredential+", or host.key below --state-dir)")
	o.store.add(f)
	f.Var(cli.Int(&o.concurrency, 1, function.MaxConcurrency/2, ""), "concurrency", "maximum number of sandboxes of all functions (default: as many as memory allows, up to 1000)")
}

// addServeSettings defines the settings that only the configuration file has.
func (o *serveOptions) addServeSettings(f *pflag.FlagSet) {
	all := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.addSettings(all)
	for _, name := range sharedSettings {
		f.AddFlag(all.Lookup(name))
	}
	o.limits.add(f)
	f.Var(cli.IntOrZero(&o.treeMB, 1, 1<<30, " MB"), "extracted-size", "most disk space in MB of the extracted code of functions that are ready to run; 0 is no limit")
	o.logs.add(f)
	f.Var(cli.IntOrZero(&o.seriesLimit, 1, 10000, ""), "metrics-functions", "most functions that have series of their own in the metrics; others are in the totals")
	f.Var(cli.IntOrZero(&o.freeMB, 1, 1<<30, " MB"), "free-space", "disk space in MB that stays free below --state-dir: with less, nothing is changed; functions can be read, deleted and invoked")
}

// networkName is the form of a network's name: it is part of the id of a subnet.
var networkName = regexp.MustCompile(`^[0-9a-z]{1,32}$`)

// addNetwork adds a network of the configuration file.
func (o *serveOptions) addNetwork(name string) (*pflag.FlagSet, error) {
	if !networkName.MatchString(name) || name == isolation.NetworkNone {
		return nil, errors.New("the name of a network has 1 to 32 digits and lower-case letters, and is not none")
	}
	n := &namedNetwork{name: name}
	o.networks = append(o.networks, n)
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.Var(cli.Parsed(&n.policy.Allow, isolation.ParseRule, maxNetworkRules, "CIDR[:PORT][/tcp|udp]"), "allow", "")
	f.Var(cli.Parsed(&n.policy.Names, isolation.ParseNameRule, maxNetworkRules, "NAME[:PORT][/tcp|udp]"), "allow-name", "")
	f.Var(cli.Bool(&n.host), "unsafe-host-network", "")
	return f, nil
}

// addRuntime adds a runtime of the configuration file.
func (o *serveOptions) addRuntime(name string) (*pflag.FlagSet, error) {
	if !slices.Contains(rootfs.RuntimeNames(), name) {
		return nil, fmt.Errorf("is no runtime; there are %v", rootfs.RuntimeNames())
	}
	r := &daemon.Runtime{Name: name, Base: rootfs.HostBase}
	o.runtimes = append(o.runtimes, r)
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.StringVar(&r.Base, "rootfs", r.Base, "")
	f.Var(cli.Paths(&r.Layers, function.MaxLayers, "layers"), "layer", "")
	return f, nil
}

// completeServe checks that the options are consistent with each other, and fills in what
// follows from them.
func (o *serveOptions) completeServe() error {
	for _, n := range o.networks {
		rules := len(n.policy.Allow) + len(n.policy.Names)
		switch {
		case n.host && rules > 0:
			return fmt.Errorf("--config: network %s: unsafe-host-network has no rules: leave allow and allow-name out", n.name)
		case !n.host && rules == 0:
			return fmt.Errorf("--config: network %s allows nothing: add allow or allow-name", n.name)
		}
	}
	for _, r := range o.runtimes {
		if r.Base == "" {
			return fmt.Errorf("--config: runtime %s: rootfs must not be empty", r.Name)
		}
	}
	if err := o.checkEndpoint(); err != nil {
		return err
	}
	if err := o.store.complete(); err != nil {
		return err
	}
	if o.runtimes == nil {
		for _, name := range rootfs.RuntimeNames() {
			o.runtimes = append(o.runtimes, &daemon.Runtime{Name: name, Base: rootfs.HostBase, Optional: true})
		}
	}
	if err := o.checkFolders(); err != nil {
		return err
	}
	if o.logs.functionMB > o.logs.totalMB {
		return fmt.Errorf("--config: log-function-size %d MB exceeds log-size %d MB: lower the one or raise the other", o.logs.functionMB, o.logs.totalMB)
	}
	if err := o.completeFile(); err != nil {
		return err
	}
	return o.completeCredentials()
}

// serveConfig returns the configuration of the daemon, but for its listener.
func (o *serveOptions) serveConfig(host runc.Host) (cfg daemon.ServeConfig, err error) {
	cfg = daemon.ServeConfig{
		Config: o.daemonConfig(host), Concurrency: o.concurrency,
		TreeBytes: int64(o.treeMB) << 20, FreeBytes: int64(o.freeMB) << 20,
		Control: message.ControlConfig{LogLevel: o.logLevel, LogFormat: o.function.LogFormat, Region: o.settings.region, AccountID: o.settings.accountID,
			Unsigned: o.unsigned, SeriesLimit: o.seriesLimit, TLS: o.tls.Key != "", Limits: o.limits.message()},
		KeyPair: o.tls, HostKey: o.hostKeyFile(), Group: admin.DefaultGroup, Logs: o.logs.config(),
	}
	cfg.Networks = []daemon.Network{{Name: isolation.NetworkNone, Network: isolation.Network{Mode: isolation.NetworkNone}}}
	for _, n := range o.networks {
		network := isolation.Network{Mode: isolation.NetworkEgress, Policy: n.policy, Range4: o.settings.range4, Range6: o.settings.range6}
		if n.host {
			network = isolation.Network{Mode: isolation.NetworkHost}
		}
		cfg.Networks = append(cfg.Networks, daemon.Network{Name: n.name, Network: network})
	}
	for _, r := range o.runtimes {
		cfg.Runtimes = append(cfg.Runtimes, *r)
	}
	o.addFile(&cfg)
	cfg.Worker.Unsigned, cfg.Worker.Memory = o.unsigned, uint64(o.limits.memoryMB)<<20
	cfg.Renew = func() (message.Credentials, error) { return message.Credentials{}, nil }
	if cfg.StateDir, err = filepath.Abs(cfg.StateDir); err != nil {
		return cfg, err
	}
	if cfg.Store, err = o.store.server(); err != nil {
		return cfg, err
	}
	if cfg.HostKey != "" { // 'key rotate-host' gets this path, and may run in another folder
		cfg.HostKey, err = filepath.Abs(cfg.HostKey)
	}
	return cfg, err
}

// serve runs the daemon until ctx ends.
func (o *serveOptions) serve(ctx context.Context, host runc.Host, std daemon.Streams) error {
	cfg, err := o.serveConfig(host)
	if err != nil {
		return err
	}
	if cfg.Listener, err = listen("--listen", o.listen); err != nil {
		return err
	}
	if err := o.checkListener(cfg.Listener.Addr()); err != nil {
		cfg.Listener.Close()
		return err
	}
	cfg.Endpoint = o.endpointURL(cfg.Listener.Addr())
	cfg.Control.Endpoint = cfg.Endpoint
	return daemon.Serve(ctx, cfg, std)
}

// hostKeyCredential is the name of the systemd credential with the host key.
const hostKeyCredential = "host-key"

// hostKeyFile returns the file of the host key that the operator has chosen: by the flag, or as
// a systemd credential. "" stands for the one below the state folder.
func (o *serveOptions) hostKeyFile() string { return cmp.Or(o.hostKey, credential(hostKeyCredential)) }

// credential returns the path of a systemd credential, "" if there is none.
func credential(name string) string {
	if folder := os.Getenv("CREDENTIALS_DIRECTORY"); folder != "" {
		path := filepath.Join(folder, name)
		if _, err := os.Lstat(path); err == nil {
			return path
		}
	}
	return ""
}

// endpointURL returns the URL at which clients on this host reach a listener.
func (o *serveOptions) endpointURL(addr net.Addr) string {
	if a, ok := addr.(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		addr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: a.Port}
	}
	if o.tls.Key != "" {
		return "https://" + addr.String()
	}
	return "http://" + addr.String()
}
