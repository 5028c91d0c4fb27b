// Command sandbox-stage is what libcontainer executes to set up a new domain: see
// package stage. It becomes the init handler, and never gets as far as main if
// libcontainer has started it.
package main

import (
	"os"

	_ "github.com/sandboxd/sandboxd/isolation/runc/reexec"
)

func main() {
	_, _ = os.Stderr.WriteString("sandbox-stage: only sandboxd starts this program: use sandboxd run\n")
	os.Exit(2)
}
