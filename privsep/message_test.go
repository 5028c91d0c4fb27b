package privsep

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

var requests = []request{
	{1, opCreate, 0, 0}, {2, opStart, 1, 0}, {3, opStart, 1, 1}, {4, opThrottle, 7, 1}, {5, opKill, 1 << 31, 0},
	{6, opGivePipes, 1, 0}, {7, opDial, 1, 65535}, {8, opClose, 1, 0}, {9, opRenew, 0, 0}, {0, opCancel, 0, 8},
}

func filesOf(r request) int {
	if r.op == opGivePipes {
		return 2
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
		for _, wrong := range [][]byte{b[:15], append(slices.Clone(b), 0), nil} {
			if got, err := decodeRequest(wrong, filesOf(want)); err == nil {
				t.Errorf("%d bytes became %+v", len(wrong), got)
			}
		}
		if got, err := decodeRequest(b, 2-filesOf(want)); err == nil {
			t.Errorf("with %d files it became %+v", 2-filesOf(want), got)
		}
	}
}

func TestWrongRequests(t *testing.T) {
	for _, r := range []request{
		{1, 0, 0, 0}, {1, ops, 1, 0}, {1, 1 << 30, 1, 0},
		{1, opCreate, 1, 0}, {1, opCreate, 0, 1}, {1, opRenew, 1, 0}, {1, opKill, 0, 0}, {1, opClose, 1, 1},
		{1, opStart, 1, 2}, {1, opThrottle, 1, 2}, {1, opDial, 1, 0}, {1, opDial, 1, 65536}, {0, opCancel, 1, 8},
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
		if r.op == opStart && domains[r.arg] == "" || (files > 0) != (r.op == opGivePipes) {
			t.Errorf("%+v with %d files", r, files)
		}
	})
}
