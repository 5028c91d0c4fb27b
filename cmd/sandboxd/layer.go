package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/layer"
)

// layerOptions holds the flags of `layer`. Those that run has too are in options.
type layerOptions struct {
	options
	output, lock string
	registries   []string
}

func layerCommand() *cobra.Command {
	o := layerOptions{options: *newOptions()}
	cmd := &cobra.Command{
		Use:   "layer [flags] RUNTIME",
		Short: "Make a layer with AWS's runtime client and SDK",
		Long: `layer makes a zip with what Lambda's runtimes have beside the function: AWS's runtime
client, and for Python, Node and Ruby the AWS SDK. With it a package runs as it was
downloaded from Lambda: sandboxd run --layer RUNTIME-layer.zip --runtime RUNTIME …

RUNTIME is python3.9 to python3.14, nodejs18.x (without the SDK) to nodejs24.x, java11
to java25, or ruby3.1 to ruby3.4. The base needs the language and its package manager below /usr: pip,
npm, Maven or RubyGems. For Node the client is compiled, which takes some minutes, and
needs cmake, g++, make, autoconf, libtool and the header files of Node.

The package manager installs what lock files name, with hashes, in a sandbox that can
connect to the registry and to nothing else. The registry is the one that the package
manager uses by itself, or that of --registry.

--lock names a folder of other lock files: for Python requirements.txt; for Node client
and sdk, each with package.json and package-lock.json; for Java pom.xml and SHA256SUMS;
for Ruby SHA256SUMS, with the names of gems. sandboxd has none for Ruby:

  gem fetch aws_lambda_ric && sha256sum *.gem >SHA256SUMS

Exit codes: 0 success; 2 an error, such as a package that has another hash.`,
		Example: `  sudo sandboxd layer python3.11
  sudo sandboxd layer nodejs20.x --registry https://npm.example.com/
  sudo sandboxd run --layer python3.11-layer.zip --runtime python3.11 --handler app.handler function.zip`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("layer takes one RUNTIME, but got %d arguments; see 'sandboxd layer --help'", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.make(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.output, "output", "", "`FILE` to write (default RUNTIME-layer.zip)")
	f.StringVar(&o.lock, "lock", "", "`DIR` with lock files, instead of those that sandboxd has")
	f.StringArrayVar(&o.registries, "registry", nil, "`URL` of the registry; repeatable if it names files on other hosts")
	f.StringVar(&o.source.Base, "rootfs", o.source.Base, "base file system: host, or a `DIR`")
	f.StringVar(&o.stateDir, "state-dir", o.stateDir, "`DIR` for templates of /tmp, as for 'sandboxd run'")
	f.StringVar(&o.runDir, "run-dir", o.runDir, "`DIR` for the sockets and locks of running daemons")
	f.Var(cli.Int(&o.idBase, 0, 1<<32-1, ""), "id-base", "first host id for sandboxes, a multiple of 65536")
	return cmd
}

// make makes the layer of the runtime with that name.
func (o *layerOptions) make(cmd *cobra.Command, name string) error {
	runtime, err := layer.Find(name)
	if err != nil {
		return err
	}
	if err := needRoot(cmd); err != nil {
		return err
	}
	if o.source.Base == "" || o.stateDir == "" || o.runDir == "" {
		return errors.New("--rootfs, --state-dir and --run-dir must not be empty")
	}
	if o.output == "" {
		o.output = name + "-layer.zip"
	}
	if o.output, err = filepath.Abs(o.output); err != nil {
		return err
	}
	host, err := daemon.Become(cmd.Context(), uint32(o.idBase))
	if err != nil {
		return err
	}
	cfg := daemon.Config{Host: host, StateDir: o.stateDir, RunDir: o.runDir, IDBase: uint32(o.idBase), Worker: message.WorkerConfig{LogLevel: o.logLevel}}
	err = daemon.MakeLayer(cmd.Context(), cfg, daemon.Layer{
		Runtime: runtime, Base: o.source.Base, Registries: o.registries, Lock: o.lock, Output: o.output,
	}, os.Stderr)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), o.output)
	return err
}
