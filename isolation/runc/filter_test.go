package runc

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/isolation"
)

// Every profile becomes a program that fits into the kernel, once, in a file that
// nobody can change.
func TestFilterFiles(t *testing.T) {
	var f filters
	defer f.Close()
	for _, profile := range isolation.Profiles() {
		file, err := f.file(profile)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := f.file(profile); again != file || err != nil {
			t.Errorf("%s: another file, %v", profile, err)
		}
		info, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		program := make([]unix.SockFilter, info.Size()/unix.SizeofSockFilter)
		text := make([]byte, info.Size())
		if _, err := file.ReadAt(text, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := binary.Decode(text, binary.NativeEndian, program); err != nil || len(program) < 100 || len(program) > 4096 {
			t.Errorf("%s: %d instructions, %v", profile, len(program), err)
		}
		t.Logf("%s: %d instructions", profile, len(program))
		if _, err := file.WriteAt([]byte{0}, 0); err == nil {
			t.Errorf("%s: the file can be written to", profile)
		}
		if err := file.Truncate(0); err == nil {
			t.Errorf("%s: the file can be cut", profile)
		}
	}
	if _, err := f.file("none"); err == nil {
		t.Error("a profile that there is not has a file")
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := compile(isolation.DefaultProfile); err != nil {
			b.Fatal(err)
		}
	}
}

// ENV-40: of all calls a filter leaves only sysinfo to the init handler, and all others, and
// those of other interfaces, to the profile, which follows unchanged.
func TestFilterWithSysinfo(t *testing.T) {
	plain, err := Filter(isolation.DefaultProfile, false)
	if err != nil {
		t.Fatal(err)
	}
	program, err := Filter(isolation.DefaultProfile, true)
	if err != nil {
		t.Fatal(err)
	}
	front := make([]unix.SockFilter, (len(program)-len(plain))/unix.SizeofSockFilter)
	if _, err := binary.Decode(program[:len(program)-len(plain)], binary.NativeEndian, front); err != nil || !bytes.HasSuffix(program, plain) {
		t.Fatalf("%d instructions in front of the profile, %v", len(front), err)
	}
	native := auditArch[runtime.GOARCH]
	for call, want := range map[[2]uint32]bool{
		{unix.SYS_SYSINFO, native}: true, {unix.SYS_SYSINFO + 1, native}: false, {unix.SYS_SYSINFO - 1, native}: false, {0, native}: false,
		{unix.SYS_SYSINFO | 0x40000000, native}:  false, // x32
		{unix.SYS_SYSINFO, unix.AUDIT_ARCH_I386}: false, {116, unix.AUDIT_ARCH_I386}: false, {unix.SYS_SYSINFO, unix.AUDIT_ARCH_ARM}: false,
	} {
		if got := interpret(t, front, call); got != want {
			t.Errorf("call %d of interface %#x: %v, want %v", call[0], call[1], got, want)
		}
	}
}

// interpret runs the program for a call, its number and interface, and reports whether it ends
// with the call left to the listener, or else at its end. It knows what withSysinfo uses.
func interpret(t *testing.T, program []unix.SockFilter, call [2]uint32) bool {
	t.Helper()
	var accumulator uint32
	for at := 0; at < len(program); at++ {
		switch i := program[at]; i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			accumulator = call[i.K/4]
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			if accumulator == i.K {
				at += int(i.Jt)
			} else {
				at += int(i.Jf)
			}
		case unix.BPF_RET | unix.BPF_K:
			return i.K == unix.SECCOMP_RET_USER_NOTIF
		default:
			t.Fatalf("instruction %d is %+v", at, i)
		}
	}
	return false
}

// With a stricter Yama the init handler could not answer, and what is wrong is told with the fix.
func TestPtraceScope(t *testing.T) {
	for scope, want := range map[string]bool{"": true, "0": true, "1": true, "2": false, "3": false} {
		if err := checkPtraceScope(scope); (err == nil) != want || err != nil && !host.Lacks(err, host.Sysinfo) {
			t.Errorf("%q: %v", scope, err)
		}
	}
}
