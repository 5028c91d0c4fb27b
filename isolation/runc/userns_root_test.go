//go:build integration

package runc

import (
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// User namespaces are made while signals come in, several at once, and nothing is left
// of the processes that held them.
func TestUserNSAmongSignals(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGWINCH)
	defer signal.Stop(signals)
	over := make(chan struct{})
	var storm, makers sync.WaitGroup
	storm.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				_ = unix.Kill(os.Getpid(), unix.SIGWINCH)
			}
		}
	})
	before := children(t)
	for range 4 {
		makers.Go(func() {
			for range 25 {
				ns, err := newUserNS(0, 7, 0x70000000)
				if err != nil {
					t.Error(err)
					return
				}
				ns.Close()
			}
		})
	}
	makers.Wait()
	close(over)
	storm.Wait()
	if after := children(t); after != before {
		t.Errorf("children %q, before %q", after, before)
	}
}

// children are the process ids of this process's children.
func children(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) { // the thread has ended
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// What cannot be had is an error, not a process that is left.
func TestUserNSRefused(t *testing.T) {
	before := children(t)
	if ns, err := newUserNS(0, 0, ^uint32(0)); err == nil { // no such id
		ns.Close()
		t.Error("no error")
	}
	if after := children(t); after != before {
		t.Errorf("children %q, before %q", after, before)
	}
}
