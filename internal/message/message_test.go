package message

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/isolation"
)

func testRevision() Revision {
	return Revision{
		ID: function.ID{Epoch: 1 << 63, Number: 7}, MemoryMB: 1769, TmpMB: 512, MicroCPU: 1_000_000, PIDs: 1024,
		Runtime: 3, Profile: 1, Network: 2, Role: 1, Code: Digest{1, 2, 3}, Layers: []Digest{{4}, {}, {31: 5}},
	}
}

func TestRevisionTravels(t *testing.T) {
	full := testRevision()
	full.Layers = []Digest{{1}, {2}, {3}, {4}, {5}}
	for _, want := range []Revision{{}, testRevision(), full} {
		b := want.Encode()
		got, err := DecodeRevision(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
		for _, n := range []int{0, 1, len(b) - 1} {
			if _, err := DecodeRevision(b[:n]); !errors.Is(err, ErrRevision) {
				t.Errorf("%d of %d bytes: %v", n, len(b), err)
			}
		}
		if _, err := DecodeRevision(append(b, 0)); !errors.Is(err, ErrRevision) {
			t.Errorf("a byte more: %v", err)
		}
	}
}

// Whatever has no meaning in a revision, or another than this version's, is refused.
func TestRevisionForm(t *testing.T) {
	for at, want := range map[int]string{
		0: "it begins with", 4: "version", 44: "layers", 45: "not zero",
		digestsAt + 32*(1+3): "not zero", RevisionSize - 1: "not zero",
	} {
		r := testRevision()
		b := r.Encode()
		b[at] ^= 0x80
		if _, err := DecodeRevision(b); !errors.Is(err, ErrRevision) || !strings.Contains(err.Error(), want) {
			t.Errorf("byte %d changed: %v, want %q", at, err, want)
		}
	}
}

func TestRevisionRanges(t *testing.T) {
	r := testRevision()
	if err := r.Check(4, 2, 3, 1); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Revision){
		"a runtime that is none": func(r *Revision) { r.Runtime = 4 },
		"no epoch":               func(r *Revision) { r.ID.Epoch = 0 },
		"no number":              func(r *Revision) { r.ID.Number = 0 },
		"too little memory":      func(r *Revision) { r.MemoryMB = 127 },
		"too much memory":        func(r *Revision) { r.MemoryMB = 10241 },
		"memory that overflows":  func(r *Revision) { r.MemoryMB = 1<<32 - 1 },
		"too small /tmp":         func(r *Revision) { r.TmpMB = 511 },
		"too large /tmp":         func(r *Revision) { r.TmpMB = 10241 },
		"no CPU":                 func(r *Revision) { r.MicroCPU = 0 },
		"too much CPU":           func(r *Revision) { r.MicroCPU = 6_000_001 },
		"no process":             func(r *Revision) { r.PIDs = 0 },
		"too many processes":     func(r *Revision) { r.PIDs = 1025 },
		"a profile that is none": func(r *Revision) { r.Profile = 2 },
		"a network that is none": func(r *Revision) { r.Network = 3 },
		"a role that is none":    func(r *Revision) { r.Role = 2 },
	} {
		r := testRevision()
		change(&r)
		if err := r.Check(4, 2, 3, 1); !errors.Is(err, ErrRevision) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r = testRevision()
	if err := r.Check(1, 0, 0, 0); !errors.Is(err, ErrRevision) {
		t.Errorf("without profiles: %v", err)
	}
}

// FuzzRevision: whatever the bytes, they are refused with the kind ErrRevision, or are the
// one encoding of what they say; and a revision that passes the check is within its ranges.
func FuzzRevision(f *testing.F) {
	r := testRevision()
	empty := Revision{}
	f.Add(r.Encode())
	f.Add(empty.Encode())
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, RevisionSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRevision(b)
		if err != nil {
			if !errors.Is(err, ErrRevision) {
				t.Fatalf("%v", err)
			}
			return
		}
		if again := r.Encode(); !bytes.Equal(again, b) {
			t.Fatalf("%x is also encoded as %x", b, again)
		}
		if r.Check(5, 3, 4, 2) == nil && (r.MemoryMB < 128 || r.MemoryMB > 10240 || r.TmpMB > 10240 || r.MicroCPU > 6_000_000 || r.PIDs > 1024 || r.Profile > 2 || r.Network > 3 || r.Role > 2 || r.Runtime > 4 || r.ID.Number == 0) {
			t.Fatalf("%+v passes", r)
		}
	})
}

func TestParseDigest(t *testing.T) {
	hex := strings.Repeat("0f", 32)
	if d, err := ParseDigest(hex); err != nil || d[0] != 0x0f || d[31] != 0x0f {
		t.Errorf("%v, %v", d, err)
	}
	if d, err := ParseDigest(""); err != nil || d != (Digest{}) {
		t.Errorf("%v, %v", d, err)
	}
	for _, s := range []string{"0f", hex + "0f", strings.Repeat("zz", 32)} {
		if _, err := ParseDigest(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func TestErrorsKeepTheirKinds(t *testing.T) {
	for _, err := range []error{
		errors.New("some fault"),
		fmt.Errorf("make a sandbox: %w", context.Canceled),
		fmt.Errorf("revision 3: %w", ErrUnknownRevision),
		errors.Join(fmt.Errorf("no such thing: %w", errors.ErrUnsupported), os.ErrDeadlineExceeded),
		&fs.PathError{Op: "mkdir", Path: "/x", Err: unix.EEXIST},
		os.NewSyscallError("clone", unix.EAGAIN),
	} {
		got := error(&Error{Text: err.Error(), Kinds: KindsOf(err)})
		if got.Error() != err.Error() {
			t.Errorf("%v became %v", err, got)
		}
		for _, kind := range append(kinds, unix.EAGAIN, unix.EEXIST, unix.EPERM) {
			if errors.Is(got, kind) != errors.Is(err, kind) {
				t.Errorf("%v: is it %v? %v, it was %v", err, kind, errors.Is(got, kind), errors.Is(err, kind))
			}
		}
		var errno unix.Errno
		if errors.As(got, &errno) != errors.As(err, new(unix.Errno)) {
			t.Errorf("%v: the number %v", err, errno)
		}
	}
	if len(kinds) > 32 {
		t.Errorf("%d kinds do not fit into 32 bits", len(kinds))
	}
}

func TestWorkerConfigTravels(t *testing.T) {
	want := &WorkerConfig{
		Instance: "0123abcd", LogLevel: "info", LogFormat: "Text", Concurrency: 3, DrainTimeout: time.Minute,
		Networks: map[string]isolation.Network{"none": {Mode: isolation.NetworkNone}},
		Life:     Life{Linger: 5 * time.Millisecond, RuntimeShare: 0.3},
		Revisions: []function.Revision{{
			ID: function.ID{Epoch: 1, Number: 1}, Version: function.Latest, Settings: function.Defaults(),
			Program: function.Program{Bootstrap: function.Entry{Path: "/var/task/bootstrap"}, Image: &function.Image{Env: map[string]string{}}},
		}},
	}
	for i := range 200 { // more than a pipe holds
		want.Revisions[0].Program.Image.Env[fmt.Sprintf("VARIABLE_%d", i)] = strings.Repeat("x", 1024)
	}
	f, err := want.File()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadWorkerConfig(f)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v became %+v, %v", want, got, err)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file is open: %v", err)
	}
	empty, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadWorkerConfig(empty); err == nil {
		t.Error("an empty configuration is taken")
	}
}
