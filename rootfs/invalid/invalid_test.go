package invalid

import (
	"errors"
	"strconv"
	"strings"
	"testing"
)

func TestErrorsTravel(t *testing.T) {
	for _, want := range []error{
		&Error{Kind: ErrUnsafe, File: "f.zip", Entry: "../x\x00y", Reason: "would leave the folder", Fix: "do not"},
		&Error{Kind: ErrPackage, File: "f.zip", Reason: "is none", Err: errors.New("cause")},
		&Error{Kind: ErrDigest, File: "f.zip", Reason: "is not what the “image” names: ä"},
		errors.New("no space left on device"),
	} {
		b := Encode(want)
		got := Decode("f.zip", b)
		if got.Error() != want.Error() {
			t.Errorf("%v became %v", want, got)
		}
		for _, kind := range kinds {
			if errors.Is(got, kind) != errors.Is(want, kind) {
				t.Errorf("%v: is it %v?", got, kind)
			}
		}
		for n := range b {
			if err := Decode("f.zip", b[:n]); err == nil {
				t.Errorf("%d of %d bytes are no error", n, len(b))
			}
		}
	}
	if err := Decode("f.zip", append([]byte{0}, 0xff, 0xff, 0xff, 0xff)); err == nil {
		t.Error("a lying length is no error")
	}
}

// What an extractor says that its input has taken over can neither flood a terminal nor
// steer it, and does not say from which file it came.
func TestErrorsAreTamed(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, hostile := range []error{
		&Error{Kind: ErrUnsafe, File: "/etc/shadow", Entry: "e\x1b[2J" + long, Reason: "r\x1b]0;title\a" + long, Fix: "run\nrm -rf /\u202e", Err: errors.New("\x9b" + long)},
		errors.New("a\rb\x00" + long),
	} {
		got := Decode("f.zip", Encode(hostile)).Error()
		if strings.Contains(got, "shadow") || len(got) > 10_000 || strings.ContainsFunc(got, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Errorf("%d bytes: %.200q", len(got), got)
		}
	}
}
