package host

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

func TestUnsupported(t *testing.T) {
	e := &Unsupported{Feature: LoopDevices, Need: "there are no loop devices", Fix: "modprobe loop", Err: fs.ErrNotExist}
	err := fmt.Errorf("make /tmp: %w", e)
	if want := "make /tmp: there are no loop devices: file does not exist; modprobe loop"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	if text := (&Unsupported{Need: "there is nothing"}).Error(); text != "there is nothing" {
		t.Errorf("%q", text)
	}
	if !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, fs.ErrNotExist) {
		t.Error("it is neither unsupported nor its cause")
	}
	if !Lacks(err, LoopDevices) || Lacks(err, Landlock) || Lacks(fs.ErrNotExist, LoopDevices) || Lacks(nil, LoopDevices) {
		t.Error("Lacks does not tell features apart")
	}
}
