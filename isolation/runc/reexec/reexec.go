// Package reexec is libcontainer's half of a new domain. libcontainer executes the
// program anew for each one, with the argument "init": such a process becomes the init
// handler, and never gets as far as main.
//
// It happens while packages are initialized, and in a package of few imports, because
// Go initializes a package as soon as those are: what else the daemon is made of would
// cost every domain its time.
package reexec

import (
	"os"
	"runtime/debug"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // joins namespaces before the Go runtime starts
)

func init() {
	if len(os.Args) == 2 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		debug.SetGCPercent(-1) // it allocates a few MB and lives for some ms
		libcontainer.Init()    // does not return
	}
}
