// Command dockerspec reads an OCI runtime configuration from standard input and
// prints it as Docker would run it by default: with its capabilities and seccomp
// profile, as root, and with set-id programs. The profile is that of the module
// github.com/moby/profiles/seccomp.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// capabilities are those of a Docker container (docs.docker.com, "Runtime privilege
// and Linux capabilities").
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "dockerspec:", err)
		os.Exit(1)
	}
}

func run() error {
	var spec specs.Spec
	if err := json.NewDecoder(os.Stdin).Decode(&spec); err != nil {
		return err
	}
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities}
	spec.Process.NoNewPrivileges = false
	spec.Root.Readonly = false
	profile, err := seccomp.GetDefaultProfile(&spec)
	if err != nil {
		return err
	}
	spec.Linux.Seccomp = profile
	return json.NewEncoder(os.Stdout).Encode(spec)
}
