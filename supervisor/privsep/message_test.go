package privsep

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var requests = []request{
	{id: 1, op: opCreate, sandbox: 0, arg: 0, value: 1 << 63}, {id: 2, op: opStart, sandbox: 1, arg: 0}, {id: 3, op: opStart, sandbox: 1, arg: 1}, {id: 4, op: opThrottle, sandbox: 7, arg: 1}, {id: 5, op: opKill, sandbox: 1 << 31, arg: 0},
	{id: 6, op: opGivePipes, sandbox: 1, arg: 0}, {id: 7, op: opDial, sandbox: 1, arg: 65535}, {id: 8, op: opClose, sandbox: 1, arg: 0}, {id: 9, op: opRenew, sandbox: 0, arg: 0}, {id: 0, op: opCancel, sandbox: 0, arg: 8},
	{id: 10, op: opDomain, sandbox: 1, arg: 0}, {id: 12, op: opUpstream, sandbox: 0, arg: 2}, {id: 13, op: opUpstream, sandbox: 0, arg: 2 | streamed},
	{id: 15, op: opAllow, sandbox: 1, arg: 60, value: 1 << 63, addr: netip.MustParseAddr("192.0.2.1")},
	{id: 17, op: opConnect}, {id: 18, op: opRetire, value: 1}, {id: 19, op: opKeyPair, value: 1}, {id: 20, op: opSegment, value: 4096, arg: 1}, {id: 21, op: opCredentials, sandbox: 1},
	{id: 16, op: opAllow, sandbox: 1, value: 5, addr: netip.MustParseAddr("2001:db8::1")},
}

// filesOf is how many files such a request comes with.
func filesOf(r request) int {
	switch r.op {
	case opGivePipes:
		return 2
	case opDomain:
		return 1
	}
	return 0
}

func TestRequests(t *testing.T) {
	for _, want := range requests {
		b := want.encode()
		got, err := decodeRequest(b, filesOf(want))
		if err != nil || got != want {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
		for _, wrong := range [][]byte{b[:requestSize-1], append(slices.Clone(b), 0), nil} {
			if got, err := decodeRequest(wrong, filesOf(want)); err == nil {
				t.Errorf("%d bytes became %+v", len(wrong), got)
			}
		}
		for _, files := range []int{0, 3} {
			if got, err := decodeRequest(b, files); err == nil && (filesOf(want) == 0) != (files == 0) {
				t.Errorf("with %d files it became %+v", files, got)
			}
		}
	}
}

func TestWrongRequests(t *testing.T) {
	for _, r := range []request{
		{id: 1, op: 0, sandbox: 0, arg: 0}, {id: 1, op: ops, sandbox: 1, arg: 0}, {id: 1, op: 1 << 30, sandbox: 1, arg: 0},
		{id: 1, op: opCreate, sandbox: 1, value: 1}, {id: 1, op: opCreate, arg: 1, value: 1}, {id: 1, op: opRenew, sandbox: 1, arg: 0}, {id: 1, op: opKill, sandbox: 0, arg: 0}, {id: 1, op: opClose, sandbox: 1, arg: 1},
		{id: 1, op: opStart, sandbox: 1, arg: 2}, {id: 1, op: opThrottle, sandbox: 1, arg: 2}, {id: 1, op: opDial, sandbox: 1, arg: 0}, {id: 1, op: opDial, sandbox: 1, arg: 65536}, {id: 0, op: opCancel, sandbox: 1, arg: 8},
		{id: 1, op: opDomain, sandbox: 0, arg: 0}, {id: 1, op: opUpstream, sandbox: 1, arg: 0}, {id: 1, op: opUpstream, sandbox: 0, arg: 3}, {id: 1, op: opUpstream, sandbox: 0, arg: 1 << 9}, {id: 1, op: opCreate}, {id: 1, op: opRenew, value: 1},
		{id: 1, op: opAllow, sandbox: 1, addr: netip.MustParseAddr("192.0.2.1")}, {id: 1, op: opAllow, sandbox: 1, value: 1},
		{id: 1, op: opKill, sandbox: 1, value: 1}, {id: 1, op: opKill, sandbox: 1, addr: netip.MustParseAddr("192.0.2.1")},
		{id: 1, op: opConnect, sandbox: 1}, {id: 1, op: opConnect, value: 1}, {id: 1, op: opConnect, arg: 1},
		{id: 1, op: opKeyPair}, {id: 1, op: opKeyPair, sandbox: 1, value: 1}, {id: 1, op: opKeyPair, arg: 1, value: 1},
		{id: 1, op: opCredentials}, {id: 1, op: opCredentials, sandbox: 1, arg: 1}, {id: 1, op: opCredentials, sandbox: 1, value: 1},
		{id: 1, op: opRetire}, {id: 1, op: opRetire, sandbox: 1, value: 1}, {id: 1, op: opRetire, arg: 1, value: 1},
		{id: 1, op: opSegment}, {id: 1, op: opSegment, value: 1, arg: 2}, {id: 1, op: opSegment, value: 1, sandbox: 1},
		{id: 1, op: opAllow, value: 1, addr: netip.MustParseAddr("192.0.2.1")},
	} {
		if got, err := decodeRequest(r.encode(), filesOf(r)); err == nil {
			t.Errorf("%+v was taken as %+v", r, got)
		}
	}
}

func TestReplies(t *testing.T) {
	for _, want := range []reply{
		{}, {id: 1, err: "an error"}, {id: 2, n: 7, text: []string{"a", "", "c"}}, {text: make([]string, maxText)},
	} {
		b, err := want.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeReply(b)
		if err != nil || got.id != want.id || got.err != want.err || got.n != want.n || !slices.Equal(got.text, want.text) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
		for n := range b[:len(b)-1] {
			if n == 8 || n > 8 && len(want.text) > 0 {
				continue // may be a shorter answer
			}
			if got, err := decodeReply(b[:n]); err == nil {
				t.Errorf("%d of %d bytes became %+v", n, len(b), got)
			}
		}
	}
	for _, large := range []reply{{err: strings.Repeat("x", maxReply)}, {text: make([]string, maxText+1)}} {
		if _, err := large.encode(); err == nil {
			t.Error("an answer over the limits was encoded")
		}
	}
}

// A request that is taken has one encoding, and names nothing out of bounds.
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
		if r.op == opStart && domains[r.arg] == "" || (files > 0) != (filesOf(r) > 0) {
			t.Errorf("%+v with %d files", r, files)
		}
	})
}
