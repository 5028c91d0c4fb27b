package wire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

// samples has at least one valid message of each kind.
var samples = []Message{
	Exec{ID: 1, Path: "/bin/true", Argv: []string{"true"}, Dir: "/", UID: 993, GID: 990},
	Exec{ID: 1 << 31, Path: "/" + strings.Repeat("p", MaxPath-1), Argv: []string{"a", "", "b c"}, Env: []string{"A=1", "B="}, Dir: "/var/task"},
	Signal{ID: 7, Signal: 1},
	Signal{ID: 7, Signal: 64},
	KillAll{Seq: 3},
	Handshake{Version: Version},
	Started{ID: 9, PID: 2},
	Started{ID: 9, Errno: 2, Stage: StageDir},
	Started{ID: 9, Errno: 4095, Stage: StageExec},
	Exited{ID: 9, Status: 0},
	Exited{ID: 9, Status: 255 << 8},
	Exited{ID: 9, Status: 9},
	Exited{ID: 9, Status: 11 | 0x80},
	Killed{Seq: 3},
}

func TestRoundTrip(t *testing.T) {
	for _, m := range samples {
		b, err := encode(m)
		if err != nil {
			t.Errorf("%#v: %v", m, err)
			continue
		}
		got, err := decode(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%#v became %#v, %v", m, got, err)
		}
		for n := range b {
			if cut, err := decode(b[:n]); err == nil {
				t.Errorf("%T cut to %d of %d bytes became %#v", m, n, len(b), cut)
			}
		}
		if long, err := decode(append(b, 0)); err == nil {
			t.Errorf("%T with a byte more became %#v", m, long)
		}
	}
}

// Each bound is refused on sending, and on receiving where it can be encoded.
func TestBounds(t *testing.T) {
	exec := func(change func(*Exec)) Exec {
		m := Exec{ID: 1, Path: "/p", Argv: []string{"p"}, Dir: "/"}
		change(&m)
		return m
	}
	for name, m := range map[string]Message{
		"relative path":      exec(func(m *Exec) { m.Path = "p" }),
		"no path":            exec(func(m *Exec) { m.Path = "" }),
		"long path":          exec(func(m *Exec) { m.Path = "/" + strings.Repeat("p", MaxPath) }),
		"relative directory": exec(func(m *Exec) { m.Dir = "tmp" }),
		"long directory":     exec(func(m *Exec) { m.Dir = "/" + strings.Repeat("p", MaxPath) }),
		"no arguments":       exec(func(m *Exec) { m.Argv = nil }),
		"many arguments":     exec(func(m *Exec) { m.Argv = make([]string, MaxStrings+1) }),
		"many variables":     exec(func(m *Exec) { m.Env = make([]string, MaxStrings+1) }),
		"NUL in path":        exec(func(m *Exec) { m.Path = "/p\x00" }),
		"NUL in directory":   exec(func(m *Exec) { m.Dir = "/\x00" }),
		"NUL in argument":    exec(func(m *Exec) { m.Argv = []string{"\x00"} }),
		"NUL in variable":    exec(func(m *Exec) { m.Env = []string{"A=\x00"} }),
		"large":              exec(func(m *Exec) { m.Env = []string{strings.Repeat("x", MaxMessage)} }),
		"signal 0":           Signal{ID: 1},
		"signal 65":          Signal{ID: 1, Signal: 65},
		"negative signal":    Signal{ID: 1, Signal: -9},
		"started, no pid":    Started{ID: 1},
		"started, pid -1":    Started{ID: 1, PID: -1},
		"failed, with pid":   Started{ID: 1, PID: 2, Errno: 2, Stage: StageExec},
		"failed, no errno":   Started{ID: 1, Stage: StageExec},
		"failed, no stage":   Started{ID: 1, Errno: 2},
		"failed, bad stage":  Started{ID: 1, Errno: 2, Stage: 3},
		"failed, bad errno":  Started{ID: 1, Errno: 4096, Stage: StageExec},
		"stopped":            Exited{ID: 1, Status: 0x137f},
		"continued":          Exited{ID: 1, Status: 0xffff},
		"exit 256":           Exited{ID: 1, Status: 256 << 8},
		"signal and code":    Exited{ID: 1, Status: 1<<8 | 9},
		"deadly signal 0":    Exited{ID: 1, Status: 0x80},
	} {
		if _, err := encode(m); err == nil {
			t.Errorf("%s: encoded", name)
		}
		if got, err := decode(m.append([]byte{byte(m.kind())})); err == nil {
			t.Errorf("%s: decoded as %#v", name, got)
		}
	}
}

// A count that promises more than the message holds costs no memory.
func TestLyingCount(t *testing.T) {
	b := appendUint32([]byte{byte(kindExec)}, 1, 993, 990)
	b = appendString(b, "/p")
	b = appendString(b, "/")
	b = appendUint32(b, MaxStrings) // arguments, none of which follow
	allocs := testing.AllocsPerRun(10, func() {
		if _, err := decode(b); err == nil {
			t.Error("decoded")
		}
	})
	if allocs > 10 {
		t.Errorf("%v allocations", allocs)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples {
		b, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		again, err := encode(m)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is %#v, which encodes to %x, %v", b, m, again, err)
		}
	})
}
