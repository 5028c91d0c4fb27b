package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Main runs the program in the sandbox and returns its exit code. It writes the layer to
// standard output, and what it does and what went wrong to standard error.
func Main() int {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sandboxd:", err)
		return 1
	}
	return 0
}

// job is an installation.
type job struct {
	runtime    *Runtime
	registries []string // the operator's; empty if the package manager's own is used
}

func run(args []string) error {
	// What is installed runs as our user, and must not change us.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	if len(args) == 0 {
		return errors.New("the name of a runtime is missing")
	}
	r, err := Find(args[0])
	if err != nil {
		return err
	}
	j := &job{runtime: r, registries: args[1:]}
	for _, dir := range []string{workDir, outDir, filepath.Join(workDir, "home")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	recipe := r.family.recipe(j)
	if err := recipe.prepare(); err != nil {
		return err
	}
	registries := j.registries
	if len(registries) == 0 {
		if registries, err = recipe.registries(); err != nil {
			return fmt.Errorf("find out which registry is used: %w; name it with --registry", err)
		}
	}
	if err := allow(registries); err != nil {
		return err
	}
	if err := recipe.install(); err != nil {
		return err
	}
	if err := endOthers(); err != nil {
		return err
	}
	return pack(outDir, os.Stdout)
}

// allow has the proxy connect to the registries, and from now on to nothing else.
func allow(registries []string) error {
	var lines strings.Builder
	for _, registry := range registries {
		u, err := url.Parse(registry)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("the registry %q is not an address such as https://registry.example/path", registry)
		}
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
		}
		fmt.Fprintf(&lines, "%s:%s\n", u.Hostname(), port)
	}
	request, err := http.NewRequest(http.MethodPut, "http://"+ProxyAddr+AllowPath, strings.NewReader(lines.String()))
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: &http.Transport{}, Timeout: time.Minute}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		return fmt.Errorf("the proxy of the sandbox refuses the registry: %s", bytes.TrimSpace(text))
	}
	return nil
}

// caFile is the host's list of certificate authorities on Debian; Fedora has a link there.
const caFile = "/etc/ssl/certs/ca-certificates.crt"

// env is the environment of package managers: nothing of ours but the way out.
func (j *job) env(more ...string) []string {
	proxy := "http://" + ProxyAddr
	env := []string{
		"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + workDir + "/home", "TMPDIR=/tmp", "LANG=C.UTF-8",
		"HTTP_PROXY=" + proxy, "HTTPS_PROXY=" + proxy, "http_proxy=" + proxy, "https_proxy=" + proxy,
	}
	if _, err := os.Stat(caFile); err == nil {
		env = append(env, "SSL_CERT_FILE="+caFile, "NODE_EXTRA_CA_CERTS="+caFile)
	}
	return append(env, more...)
}

// command is a command of a package manager, whose output the operator sees.
func (j *job) command(dir string, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, env
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd
}

// do runs a command of a package manager.
func (j *job) do(dir string, env []string, name string, args ...string) error {
	if err := j.command(dir, env, name, args...).Run(); err != nil {
		return fmt.Errorf("%s %s: %w; the lines above say why", filepath.Base(name), args[0], err)
	}
	return nil
}

// ask returns what a command prints, without the last line end.
func (j *job) ask(name string, args ...string) (string, error) {
	cmd := j.command(workDir, j.env(), name, args...)
	cmd.Stdout = nil
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", filepath.Base(name), args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

// tools returns an error unless the base has the programs; packages names what has them on
// Debian.
func (j *job) tools(programs []string, packages string) error {
	var missing []string
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("making the layer of %s needs %s, which the base does not have below /usr; on Debian: apt-get install %s",
		j.runtime.Name, strings.Join(missing, ", "), packages)
}

// say tells the operator what happens.
func (j *job) say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// endOthers kills every other process of the sandbox, and returns when none is left but the
// init handler, so that nothing changes files any more. Outside of a sandbox it would kill
// the host's.
func endOthers() error {
	if !IsProcess() || os.Getuid() == 0 || os.Getppid() != 1 {
		return errors.New("this process is not in a sandbox of its own")
	}
	for {
		if err := unix.Kill(-1, unix.SIGKILL); err == unix.ESRCH {
			return nil
		} else if err != nil {
			return os.NewSyscallError("kill", err)
		}
		// Orphans are reaped by the init handler, our own children here.
		_, _ = unix.Wait4(-1, nil, unix.WNOHANG, nil)
		unix.Nanosleep(&unix.Timespec{Nsec: int64(time.Millisecond)}, nil)
	}
}
