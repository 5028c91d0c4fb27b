package main

import (
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/layer"
	"github.com/sandboxd/sandboxd/rootfs"
)

// TestLayersOfRuntimes: there is a layer for every runtime with a client, as messages say.
func TestLayersOfRuntimes(t *testing.T) {
	_, err := rootfs.Prepare(t.Context(), rootfs.FunctionOptions{Runtime: "none"})
	_, known, ok := strings.Cut(err.Error(), "known are ")
	if !ok {
		t.Fatal(err)
	}
	count := 0
	for _, name := range strings.Split(known, ", ") {
		if strings.HasPrefix(name, "provided") {
			continue
		}
		count++
		if _, err := layer.Find(name); err != nil {
			t.Error(err)
		}
	}
	if want := len(layer.Names()); count != want {
		t.Errorf("%d runtimes, %d layers", count, want)
	}
}
