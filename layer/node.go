package layer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// client is AWS's runtime client for Node. Only its scripts run: they compile its native
// part.
const client = "aws-lambda-ric"

// node installs by npm, the SDK and the client apart: the client has dependencies that only
// its scripts need.
type node struct {
	*job
	prefix string // where Node is installed, such as /usr
}

func (n *node) prepare() error {
	if err := n.tools([]string{"node", "npm"}, "nodejs npm"); err != nil {
		return err
	}
	if err := n.tools([]string{"cmake", "g++", "make", "autoreconf", "libtoolize", "python3", "tar", "xz"}, "cmake g++ make autoconf automake libtool python3 tar xz-utils"); err != nil {
		return fmt.Errorf("a part of %s is compiled: %w", client, err)
	}
	path, err := exec.LookPath("node")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return err
	}
	n.prefix = filepath.Dir(filepath.Dir(path))
	n.say("a part of %s is compiled in the end, which takes some minutes", client)
	if _, err := os.Stat(filepath.Join(n.prefix, "include/node/node_api.h")); err != nil {
		return fmt.Errorf("a part of %s is compiled: making the layer of %s needs the header files of Node, which %s does not have; on Debian: apt-get install libnode-dev",
			client, n.runtime.Name, filepath.Join(n.prefix, "include/node"))
	}
	return nil
}

func (n *node) registries() ([]string, error) {
	out, err := n.ask("npm", "config", "get", "registry")
	return []string{out}, err
}

func (n *node) install() error {
	env := n.env("npm_config_cache="+workDir+"/npm", "npm_config_audit=false", "npm_config_fund=false", "npm_config_update_notifier=false",
		"npm_config_progress=false", "npm_config_fetch_retry_mintimeout=1000", "npm_config_fetch_retry_maxtimeout=10000",
		"npm_config_proxy=http://"+ProxyAddr, "npm_config_https_proxy=http://"+ProxyAddr, "npm_config_nodedir="+n.prefix,
		fmt.Sprintf("MAKEFLAGS=-j%d", jobs()))
	if len(n.job.registries) > 0 {
		env = append(env, "npm_config_registry="+n.job.registries[0])
	}
	modules := filepath.Join(outDir, "nodejs/node_modules")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(LockDir, "sdk")); err == nil {
		n.say("installing the AWS SDK by npm")
		dir, err := n.ci("sdk", env)
		if err != nil {
			return err
		}
		if err := os.Remove(modules); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(dir, "node_modules"), modules); err != nil {
			return err
		}
	}
	n.say("installing %s by npm", client)
	dir, err := n.ci("client", env)
	if err != nil {
		return err
	}
	n.say("compiling %s", client)
	if err := n.do(dir, env, "npm", "rebuild", "--ignore-scripts=false", client); err != nil {
		return err
	}
	return n.take(filepath.Join(dir, "node_modules", client), filepath.Join(modules, client))
}

// ci installs what the lock file in that folder names, without running scripts.
func (n *node) ci(lock string, env []string) (dir string, err error) {
	dir = filepath.Join(workDir, lock)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(LockDir, lock))); err != nil {
		return "", err
	}
	return dir, n.do(dir, env, "npm", "ci", "--ignore-scripts", "--omit=dev")
}

// take copies of the compiled client what runs, and not what it was compiled from.
func (n *node) take(from, to string) error {
	found := false
	for _, name := range []string{"package.json", "LICENSE", "NOTICE", "THIRD-PARTY-LICENSES", "index.mjs", "rapid-client.node", "bin", "dist"} {
		path := filepath.Join(from, name)
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		if info.IsDir() {
			err = os.CopyFS(filepath.Join(to, name), os.DirFS(path))
		} else {
			err = copyFile(path, filepath.Join(to, name))
		}
		if err != nil {
			return err
		}
		found = found || name == "index.mjs" || name == "bin"
	}
	if !found {
		return errors.New("the lock file of the client has installed no " + client)
	}
	return nil
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o755)
}
