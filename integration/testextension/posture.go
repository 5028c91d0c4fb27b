package main

import (
	"os"

	"github.com/sandboxd/sandboxd/integration/inside"
	"github.com/sandboxd/sandboxd/integration/script"
)

// posture writes what the process was given into a file, as a [script.Posture].
func posture(path string) error {
	p := script.Posture{Env: os.Environ(), FDs: inside.InheritedFDs()}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	p.Status = string(status)
	if p.Processes, err = inside.Processes(); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(script.Encode(p)), 0o644)
}
