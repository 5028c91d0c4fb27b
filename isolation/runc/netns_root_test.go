//go:build integration

package runc

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// A domain that is being started when its sandbox is closed is never led to another
// sandbox's network, whose file has the number of the closed one.
func TestNetNSPathOutlivesClose(t *testing.T) {
	n, err := newNetNS(isolation.NetworkNone)
	if err != nil {
		t.Fatal(err)
	}
	err = n.atPath(func(path string) error {
		var before, after unix.Stat_t
		if err := unix.Stat(path, &before); err != nil {
			return err
		}
		n.Close()
		for range 3 {
			other, err := os.Open("/proc/self/ns/net")
			if err != nil {
				return err
			}
			defer other.Close()
		}
		if err := unix.Stat(path, &after); err != nil {
			return err
		}
		if before.Ino != after.Ino {
			t.Errorf("the path leads to namespace %d, and did to %d", after.Ino, before.Ino)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := n.atPath(func(string) error { return nil }); err == nil {
		t.Error("a namespace that is closed has a path")
	}
}
