package rapid

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// RT-45, RT-47: what is cut of a text that a runtime or an extension has chosen is a whole
// number of characters: JSON would write another for a part of one.
func TestCutsAreAtCharacters(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		most       int
		want       string
	}{
		{"short", "日本", 6, "日本"},
		{"at a boundary", "日本語", 6, "日本..."},
		{"one byte into a character", "日本語", 7, "日本..."},
		{"two bytes into a character", "日本語", 8, "日本..."},
		{"three bytes into a character", "x😀😀", 8, "x😀..."},
		{"into the first", "😀", 3, "..."},
		{"ASCII", "abcdef", 3, "abc..."},
		{"no text", "\xff\xfe\xfd\xfc", 3, "\xff\xfe\xfd..."},
	} {
		if got := cutText(tt.text, tt.most); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	for _, char := range []string{"é", "日", "😀"} {
		for shift := range len(char) {
			long := strings.Repeat("x", shift) + strings.Repeat(char, 70_000)
			for name, got := range map[string]string{
				"error type of an agent":    cutType(long),
				"error type of a runtime":   sanitizeType("Function.Xy" + long),
				"directory of an exception": decodedCause(t, long).Dir,
				"message of an exception":   decodedCause(t, long).Message,
			} {
				if !utf8.ValidString(got) || strings.ContainsRune(got, utf8.RuneError) || len(got) < maxErrorType-utf8.UTFMax {
					t.Errorf("%s, %q after %d: %d bytes that end %q", name, char, shift, len(got), got[max(0, len(got)-8):])
				}
			}
		}
	}
}

func decodedCause(t *testing.T, text string) (c cause) {
	t.Helper()
	if err := json.Unmarshal(sanitizeCause(causeBytes(cause{Dir: text, Message: text})), &c); err != nil {
		t.Fatal(err)
	}
	return c
}
