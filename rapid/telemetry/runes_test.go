package telemetry

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// What is cut ends with a whole character; bytes that are none are nobody's to judge.
func TestWholeRunes(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "a": "a", "é": "é", "日": "日", "😀": "😀",
		"a\xc3": "a", "a\xe6": "a", "a\xe6\x97": "a", "a\xf0": "a", "a\xf0\x9f": "a", "a\xf0\x9f\x98": "a",
		"é\xc3": "é", "日\xe6\x97": "日", "\xc3": "",
		"a\xff": "a\xff", "a\x80\x80\x80\x80": "a\x80\x80\x80\x80", "é\x80": "é\x80", "\xf5\x80\x80": "\xf5\x80\x80",
	} {
		if got := WholeRunes(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		if got := WholeRunes([]byte(text)); string(got) != want {
			t.Errorf("%q as bytes: %q, want %q", text, got, want)
		}
	}
}

// TL-26: the pieces of a long line have its characters whole, so that JSON does not make
// others of them, and nothing is lost between them.
func TestLongLineOfLongCharacters(t *testing.T) {
	for _, char := range []string{"a", "é", "日", "😀", "\xff"} {
		for shift := range len(char) {
			line := strings.Repeat("x", shift) + strings.Repeat(char, 2*maxLine/len(char)+10)
			var pieces []string
			l := lines{emit: func(m Message) { pieces = append(pieces, string(m.Text)) }}
			for chunk := range slices.Chunk([]byte(line+"\n"), readBytes) {
				l.write(chunk)
			}
			if got := strings.Join(pieces, ""); got != line {
				t.Errorf("%q: %d bytes in %d pieces, want %d", char, len(got), len(pieces), len(line))
			}
			for i, p := range pieces {
				if len(p) > maxLine || i < len(pieces)-1 && len(p) <= maxLine-utf8.UTFMax {
					t.Errorf("%q: piece %d has %d bytes", char, i, len(p))
				}
				b, err := json.Marshal(p)
				var back string
				if err != nil || json.Unmarshal(b, &back) != nil || utf8.ValidString(line) && back != p {
					t.Errorf("%q: piece %d becomes another text in JSON, which ends %q", char, i, back[max(0, len(back)-10):])
				}
			}
		}
	}
}

// LOG-09: what is kept of a frame that is too long ends with a whole character. One that
// has just the limit is all there.
func TestLongFrameOfLongCharacters(t *testing.T) {
	for _, char := range []string{"é", "日", "😀"} {
		for shift := range len(char) {
			for _, size := range []int{maxFrame, maxFrame + 100} {
				text := (strings.Repeat("x", shift) + strings.Repeat(char, size/len(char)+1))[:size]
				var got string
				f := frames{emit: func(m Message) { got = string(m.Text) }}
				f.write(frame(0xA55A0003, 1, text))
				want := text
				if size > maxFrame {
					want = WholeRunes(text[:maxFrame])
				}
				if got != want || size > maxFrame && !utf8.ValidString(got) {
					t.Errorf("%s: %d bytes of %d are kept, want %d", fmt.Sprintf("%q after %d", char, shift), len(got), size, len(want))
				}
			}
		}
	}
}
