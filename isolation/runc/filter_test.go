package runc

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

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
