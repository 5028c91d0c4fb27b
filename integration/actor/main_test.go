package main

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

func TestOperations(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	for _, c := range []struct {
		step script.Step
		ok   func(script.Entry) bool
	}{
		{script.Step{Op: "spin", MS: 5}, func(e script.Entry) bool { return e.Took() >= 5*time.Millisecond }},
		{script.Step{Op: "open", N: 3}, func(e script.Entry) bool { return e.N == 3 }},
		{script.Step{Op: "watch", N: 2}, func(e script.Entry) bool { return e.N == 2 }},
		{script.Step{Op: "fill", Path: file, N: 3 << 20}, func(e script.Entry) bool { return e.N == 3<<20 }},
		{script.Step{Op: "fill_inodes", Path: file + ".d", N: 4}, func(e script.Entry) bool { return e.N == 4 }},
		{script.Step{Op: "list", Path: dir}, func(e script.Entry) bool { return len(e.List) == 2 && e.List[0] == "f" && e.List[1] == "f.d" }},
		{script.Step{Op: "await", Path: file}, func(script.Entry) bool { return true }},
		{script.Step{Op: "pipes", N: 2}, func(e script.Entry) bool { return e.N >= 2*4096 }},
		{script.Step{Op: "threads", N: 3}, func(e script.Entry) bool { return e.N == 3 }},
		{script.Step{Op: "bind", Path: "127.0.0.1:0"}, func(script.Entry) bool { return true }},
		{script.Step{Op: "remove", Path: file + ".d"}, func(script.Entry) bool { return true }},
		{script.Step{Op: "list", Path: dir}, func(e script.Entry) bool { return len(e.List) == 1 }},
	} {
		e := do(c.step)
		if e.Error != "" || !c.ok(e) {
			t.Errorf("%+v: %+v", c.step, e)
		}
	}
	if e := do(script.Step{Op: "exec", Argv: []string{"sh", "-c", "echo hi; exit 3"}}); e.Text != "hi\n" || e.Status != 3 || e.Error == "" {
		t.Errorf("exec: %+v", e)
	}
	if e := do(script.Step{Op: "list", Path: "/nonexistent"}); e.Errno != 2 {
		t.Errorf("a folder that is not there: %+v", e)
	}
}

// do does one step that needs nothing of an actor.
func do(s script.Step) script.Entry {
	e := script.Entry{Began: time.Now().UnixMicro()}
	operations[s.Op](context.Background(), nil, s, &e)
	e.At = time.Now().UnixMicro()
	return e
}
