// Command takeover is a daemon whose unprivileged processes have been taken over: its worker
// and its control process are confined as those of sandboxd, and then do what the requests of
// a test say. The root side is package daemon, as in sandboxd. It is for tests of what root
// and the kernel let the two do.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/daemon/control"
	"github.com/sandboxd/sandboxd/daemon/unpack"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

func main() {
	switch {
	case unpack.IsProcess():
		os.Exit(unpack.Main())
	case control.IsProcess():
		os.Exit(control.Main(openControl))
	case os.Args[0] == message.WorkerCommand:
		os.Exit(workerMain())
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	os.Exit(exit.Report(serve(exit.OnSignals(context.Background(), signals)), os.Stderr))
}

// serve is the root side.
func serve(ctx context.Context) error {
	state, run := flag.String("state-dir", "", ""), flag.String("run-dir", "", "")
	layers := flag.String("layers", "", "of the runtime python3.11, separated by commas")
	trees, free := flag.Int64("tree-bytes", 0, ""), flag.Int64("free-bytes", 0, "")
	region := flag.String("region", "", "of access keys; with it, the control process has not been taken over")
	unsigned := flag.Bool("unsigned", false, "")
	group := flag.String("group", "", "of operators")
	hostKey := flag.String("host-key", "", "")
	flag.Parse()
	host, err := daemon.Become(ctx, subid.DefaultIDBase)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	none := isolation.Network{Mode: isolation.NetworkNone}
	config := daemon.ServeConfig{
		Config: daemon.Config{
			Host: host, StateDir: *state, RunDir: *run, IDBase: subid.DefaultIDBase, Listener: l,
			Keep:     store.Retention{Age: store.NoAge, Bytes: store.NoBytes},
			Networks: []daemon.Network{{Name: "none", Network: none}},
			Worker:   message.WorkerConfig{LogLevel: "debug", LogFormat: "Text", DrainTimeout: time.Second},
			Renew:    func() (message.Credentials, error) { return message.Credentials{}, nil },
		},
		Runtimes:    []daemon.Runtime{{Name: "provided.al2023", Base: rootfs.HostBase}},
		Roles:       []daemon.Role{roleOf("one"), roleOf("two")},
		Concurrency: 4, TreeBytes: *trees, FreeBytes: *free,
		HostKey: *hostKey, Endpoint: "http://" + l.Addr().String(), Group: *group,
		Control: message.ControlConfig{
			LogLevel: "debug", LogFormat: "Text", Region: *region, AccountID: "000000000000", Unsigned: *unsigned, SeriesLimit: 2,
		},
	}
	if *layers != "" {
		config.Runtimes = append(config.Runtimes, daemon.Runtime{Name: "python3.11", Base: rootfs.HostBase, Layers: strings.Split(*layers, ",")})
	}
	if err := daemon.Serve(ctx, config, daemon.Streams{Out: os.Stdout, Err: os.Stderr}); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// roleOf is a role whose credentials have its name.
func roleOf(name string) daemon.Role {
	c := message.Credentials{AccessKeyID: name, SecretAccessKey: name}
	return daemon.Role{ARN: "arn:aws:iam::000000000000:role/" + name, First: c, Read: func() (message.Credentials, error) { return c, nil }}
}
