package registry

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
)

var (
	revision = &message.Revision{ID: function.ID{Epoch: 3, Number: 7}, MemoryMB: 128, TmpMB: 512, MicroCPU: 1, PIDs: 1, Runtime: 2,
		Code: message.Digest{1}, Layers: []message.Digest{{2}, {3}}}
	requests = []request{
		{id: 1, op: opRegister, revision: revision.Encode()}, {id: 1 << 31, op: opRegister, value: 0b101, revision: revision.Encode()},
		{id: 2, op: opForget, value: 1 << 63}, {id: 3, op: opConnect}, {id: 4, op: opDialStore},
	}
	program = function.Program{Bootstrap: function.Entry{Path: "/var/task/bootstrap", Dir: "/var/task"}, Extensions: []string{"a", "b"}, Locale: "C.UTF-8"}
)

// filesOf is how many files such a request comes with.
func filesOf(r request) int {
	if r.op == opRegister && r.value != 0 {
		return 2
	}
	return 0
}

func TestRequests(t *testing.T) {
	for _, want := range requests {
		b := want.encode()
		got, err := decodeRequest(b, filesOf(want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
		for _, wrong := range [][]byte{nil, b[:requestSize-1], append(slices.Clone(b), 0)} {
			if got, err := decodeRequest(wrong, filesOf(want)); err == nil {
				t.Errorf("%d bytes became %+v", len(wrong), got)
			}
		}
		for _, files := range []int{1, 3} {
			if got, err := decodeRequest(b, files); err == nil {
				t.Errorf("with %d files it became %+v", files, got)
			}
		}
	}
}

func TestWrongRequests(t *testing.T) {
	form := revision.Encode()
	for name, r := range map[string]request{
		"no operation":          {id: 1},
		"an unknown operation":  {id: 1, op: ops},
		"no id":                 {op: opConnect},
		"a tree too many":       {id: 1, op: opRegister, value: 1 << message.MaxTrees, revision: form},
		"no number":             {id: 1, op: opForget},
		"a value":               {id: 1, op: opConnect, value: 1},
		"a value for the store": {id: 1, op: opDialStore, value: 1},
		"a revision":            {id: 1, op: opForget, value: 1, revision: form},
	} {
		if got, err := decodeRequest(r.encode(), 0); err == nil {
			t.Errorf("%s was taken as %+v", name, got)
		}
	}
	b := requests[2].encode()
	b[0]++
	if _, err := decodeRequest(b, 0); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("another version: %v", err)
	}
}

func TestReplies(t *testing.T) {
	for _, want := range []reply{
		{}, {id: 1, err: "an error", kinds: message.KindsOf(message.ErrDigest)}, {id: 2, missing: 5}, {id: 3, program: &program}, {missing: isStream},
	} {
		b, err := want.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeReply(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
		for n := range b[:len(b)-1] {
			if got, err := decodeReply(b[:n]); err == nil && n != replyHead {
				t.Errorf("%d of %d bytes became %+v", n, len(b), got)
			}
		}
		if got, err := decodeReply(append(b, 0)); err == nil {
			t.Errorf("a byte more became %+v", got)
		}
	}
	for _, large := range []reply{{err: strings.Repeat("x", maxReply)}, {program: &function.Program{Extensions: slices.Repeat([]string{strings.Repeat("x", 200)}, 1000)}}} {
		if _, err := large.encode(); err == nil {
			t.Error("an answer over the limits was encoded")
		}
	}
}

// A request that is taken has one encoding, and the files that it says.
func FuzzRequest(f *testing.F) {
	for _, r := range requests {
		f.Add(r.encode(), filesOf(r))
	}
	f.Fuzz(func(t *testing.T, b []byte, files int) {
		r, err := decodeRequest(b, files)
		if err != nil {
			return
		}
		if !bytes.Equal(r.encode(), b) {
			t.Errorf("%x is %+v, which encodes to %x", b, r, r.encode())
		}
		if r.id == 0 || files < 0 || files > message.MaxTrees || files > 0 && r.op != opRegister {
			t.Errorf("%+v with %d files", r, files)
		}
	})
}

// An answer that is taken says the same when it is encoded again.
func FuzzReply(f *testing.F) {
	for _, r := range []reply{{id: 1, err: "an error"}, {id: 2, missing: 5}, {id: 3, program: &program}, {missing: isStream}} {
		b, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeReply(b)
		if err != nil {
			return
		}
		again, err := r.encode()
		if err != nil {
			return // gob can say more with fewer bytes than its own
		}
		if got, err := decodeReply(again); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v became %+v, %v", r, got, err)
		}
	})
}
