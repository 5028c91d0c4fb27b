package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/rootfs"
)

// deployOptions holds the flags of deploy.
type deployOptions struct {
	daemonFlags
	name, runtime, handler string
	memoryMB               int
	timeout                time.Duration
	env                    []string
}

// deployTime limits a deployment: the upload, and until the function is active.
const deployTime = 10 * time.Minute

func deployCommand() *cobra.Command {
	var o deployOptions
	cmd := &cobra.Command{
		Use:   "deploy [flags] DIR|ZIP",
		Short: "Create or update a function of a running 'sandboxd serve'",
		Long: `deploy makes a function of a folder or a zip, or gives an existing one new code, and waits
until it is active. Of an existing function only those settings change whose flags are given.
--env replaces all variables.

It asks the running daemon, on a socket that root and the members of the group ` + admin.DefaultGroup + `
can open. It does what 'aws lambda create-function' and its relatives do; use those, or
another client of the Lambda API, for other settings.

Exit codes: 0 success; 2 an error.`,
		Example: `  sudo sandboxd deploy --runtime python3.11 --handler app.handler examples/python
  sudo sandboxd deploy --name hello --env GREETING=hi hello.zip`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("deploy takes one folder or zip")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.deploy(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "`NAME` of the function (default: that of the folder or zip)")
	f.StringVar(&o.runtime, "runtime", "", "`RUNTIME`, such as "+rootfs.RuntimeNames()[0]+"; a new function needs it")
	f.StringVar(&o.handler, "handler", "", "`HANDLER`, such as app.handler; a new function needs it unless it brings its own bootstrap")
	f.Var(cli.Int(&o.memoryMB, function.MinMemoryMB, function.MaxMemoryMB, " MB"), "memory", "memory in MB")
	f.Var(cli.Seconds(&o.timeout, time.Second, 15*time.Minute), "timeout", "limit of an invocation")
	f.StringArrayVarP(&o.env, "env", "e", nil, "`NAME=VALUE`, or NAME to take the value of this command's environment; repeatable")
	o.add(f)
	return cmd
}

// deploy deploys what is at path, and prints the function's ARN.
func (o *deployOptions) deploy(cmd *cobra.Command, path string) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), deployTime)
	defer cancel()
	change := admin.FunctionChange{Name: o.name, Runtime: o.runtime, Handler: o.handler, MemoryMB: o.memoryMB, Timeout: int(o.timeout / time.Second)}
	if change.Name == "" {
		full, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		change.Name = strings.TrimSuffix(filepath.Base(full), ".zip")
	}
	if !function.NameForm.MatchString(change.Name) {
		return fmt.Errorf("%.100q is no name of a function: give one with --name, of letters, digits, - and _", change.Name)
	}
	var err error
	if change.Env, err = deployEnv(o.env); err != nil {
		return err
	}
	code, err := openCode(path)
	if err != nil {
		return err
	}
	defer code.Close()
	change.Code = code
	daemon, err := o.find(ctx)
	if err != nil {
		return err
	}
	endpoint, err := daemon.Endpoint(ctx)
	if err != nil {
		return err
	}
	deployed, err := daemon.Deploy(ctx, change)
	if err != nil {
		return fmt.Errorf("deploy %s: %w", change.Name, err)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n\n%s\n", cli.Printable(deployed.ARN), invokeCommand(endpoint, change.Name))
	return err
}

// invokeCommand returns a command line that invokes a function.
func invokeCommand(e admin.Endpoint, name string) string {
	target := e.URL + "/2015-03-31/functions/" + name + "/invocations"
	if e.Unsigned {
		return cli.Printable("curl -d '{}' " + target)
	}
	return cli.Printable("curl --aws-sigv4 aws:amz:"+e.Region+":lambda") + ` --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" -d '{}' ` + cli.Printable(target)
}

// deployEnv returns the variables of --env; nil if there are none.
func deployEnv(list []string) (map[string]string, error) {
	if list == nil {
		return nil, nil
	}
	vars := map[string]string{}
	for _, s := range list {
		name, value, given := strings.Cut(s, "=")
		if !given {
			if value, given = os.LookupEnv(name); !given {
				return nil, fmt.Errorf("--env %s: this command has no such variable; give NAME=VALUE", name)
			}
		}
		vars[name] = value
	}
	return vars, nil
}

// openCode opens the zip at path, or one of the folder there.
func openCode(path string) (io.ReadSeekCloser, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return zipFolder(path)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is neither a folder nor a zip", path)
	}
	return os.Open(path)
}
