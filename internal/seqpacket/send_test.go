package seqpacket

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inode names the file behind f.
func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if e := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return st.Ino
}

// waitsToSend reports whether a goroutine waits for room in the socket of a Conn.
func waitsToSend() bool {
	all := make([]byte, 1<<20)
	for g := range bytes.SplitSeq(all[:runtime.Stack(all, true)], []byte("\n\n")) {
		if bytes.Contains(g, []byte("[IO wait")) && bytes.Contains(g, []byte("seqpacket.(*Conn).Send(")) {
			return true
		}
	}
	return false
}

// A file that is closed while a message with it waits to be sent is the one that arrives:
// its number may be another file's by then, which the other side must never get.
func TestFileClosedWhileItIsSent(t *testing.T) {
	ours, theirs, err := Pair("theirs", "ours")
	if err != nil {
		t.Fatal(err)
	}
	sender, err := NewConn(ours, messageSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	receiver, err := NewConn(theirs, messageSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	dir := t.TempDir()
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}

	filler := make([]byte, messageSize)
	filled := 0
	for err = nil; err == nil; filled++ { // until it has no more room
		_ = sender.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		_, _, err = sender.WriteMsgUnix(filler, nil, nil)
	}
	filled--
	_ = sender.SetWriteDeadline(time.Time{})
	f := create("sent")
	want := inode(t, f)
	sent := make(chan error, 1)
	go func() { sent <- sender.Send([]byte("file"), []*os.File{f}) }()
	for deadline := time.Now().Add(20 * time.Second); !waitsToSend(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the message does not wait: the test shows nothing")
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} { // one would have its number
		defer create(name).Close()
	}
	_ = receiver.SetReadDeadline(time.Now().Add(20 * time.Second))
	for range filled {
		if _, _, err := receiver.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	_, files, err := receiver.Receive()
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	defer CloseAll(files)
	if got := inode(t, files[0]); got != want {
		t.Errorf("inode %d arrived, want %d", got, want)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}
