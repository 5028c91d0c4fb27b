package main

import (
	"fmt"
	"net"
	"regexp"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
)

// maxWebHosts is the most names that --http-host takes.
const maxWebHosts = 64

// hostForm is the form of a name for --http-host: labels without a port.
var hostForm = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$`)

// webOptions holds the flags of --http.
type webOptions struct {
	addr  string // "" serves no HTTP front
	mode  string
	hosts []hostName
}

// hostName is the name of a host, for cli.Parsed.
type hostName string

func (n hostName) String() string { return string(n) }

func (w *webOptions) addFlags(f *pflag.FlagSet) {
	f.Var(cli.Address(&w.addr), "http", "address at which the function answers HTTP requests, as a Lambda function URL does; whoever can connect can run it")
	f.Var(cli.Choice(&w.mode, invoke.InvokeModes...), "http-invoke-mode", "how answers to --http are taken: BUFFERED and RESPONSE_STREAM as a function URL does, auto as the answer demands")
	f.Var(cli.Parsed(&w.hosts, parseHost, maxWebHosts, "NAME"), "http-host", "name under which --http on a loopback address may be addressed, besides localhost and IP addresses; repeatable")
}

// parseHost checks a name for --http-host.
func parseHost(s string) (hostName, error) {
	if len(s) > 253 || !hostForm.MatchString(s) {
		return "", fmt.Errorf("must be the name of a host, without a port")
	}
	return hostName(s), nil
}

// config returns the part of the worker's configuration, or nil without --http.
func (w *webOptions) config() *message.Web {
	if w.addr == "" {
		return nil
	}
	config := &message.Web{Mode: w.mode}
	for _, n := range w.hosts {
		config.Hosts = append(config.Hosts, n.String())
	}
	return config
}

// webFlags checks that the flags of --http are consistent with the others.
func (o *options) webFlags() error {
	switch {
	case o.web.addr == "" && (len(o.web.hosts) > 0 || o.web.mode != string(invoke.Auto)):
		return fmt.Errorf("--http-invoke-mode and --http-host need --http")
	case o.web.addr == "":
		return nil
	case o.event != "":
		return fmt.Errorf("--http has no effect with --event, which invokes once: leave one of them out")
	case o.function.TenantIsolation:
		return fmt.Errorf("--http cannot be used with --tenant-isolation: an HTTP request names no tenant")
	}
	if host, port, err := net.SplitHostPort(o.web.addr); err == nil && port != "0" && net.JoinHostPort(host, port) == o.listen {
		return fmt.Errorf("--http and --listen have the same address, %s: choose another port for one of them", o.listen)
	}
	return nil
}
