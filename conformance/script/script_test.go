package script

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"syscall"
	"testing"
)

func TestPrintedEntryIsParsedBack(t *testing.T) {
	want := Entry{Who: "ext-1", Name: "SHUTDOWN", At: 1700000000123456, Text: `{"shutdownReason":"timeout"}` + "\n", N: 17}
	printed := want.Print()
	for _, line := range []string{
		printed,
		"other text before " + printed,
		Encode(map[string]string{"time": "t", "type": "extension", "record": printed}) + "\n",
	} {
		got, ok := ParsePrinted(line)
		if !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("ParsePrinted(%q) = %+v, %v; want %+v", line, got, ok, want)
		}
	}
	for _, line := range []string{"START RequestId: 1", "", "{", `{"record":{"requestId":"1"}}`, `{"record":"text"}`, mark, mark + "{"} {
		if got, ok := ParsePrinted(line); ok {
			t.Errorf("ParsePrinted(%q) = %+v", line, got)
		}
	}
}

func TestPrinted(t *testing.T) {
	log := "INIT_START\n" + Entry{Who: "a", Name: "x", N: 1}.Print() + Entry{Who: "b", Name: "x", N: 2}.Print() +
		Entry{Who: "a", Name: "y", N: 3}.Print() + Entry{Who: "a", Name: "x", N: 4}.Print()
	got := Printed(log, "a", "x")
	if len(got) != 2 || got[0].N != 1 || got[1].N != 4 {
		t.Errorf("Printed = %+v", got)
	}
}

func TestFail(t *testing.T) {
	for _, c := range []struct {
		err   error
		errno syscall.Errno
	}{
		{nil, 0},
		{errors.New("mine"), 0},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, syscall.ENOENT},
		{fmt.Errorf("write: %w", os.NewSyscallError("write", syscall.ENOSPC)), syscall.ENOSPC},
	} {
		var e Entry
		e.Fail(c.err)
		if (e.Error == "") != (c.err == nil) || syscall.Errno(e.Errno) != c.errno {
			t.Errorf("of %v: %+v, want errno %d", c.err, e, c.errno)
		}
	}
}
