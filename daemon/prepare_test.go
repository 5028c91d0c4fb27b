package daemon

import (
	"strings"
	"testing"
)

// ENV-10, ENV-15: the operator's LANG wins, and one that the base does not have is told.
func TestLocaleWarning(t *testing.T) {
	for _, tt := range []struct {
		lang, locale string
		warns        bool
	}{
		{"en_US.UTF-8", "C.UTF-8", true},
		{"en_US.UTF-8", "en_US.UTF-8", false},
		{"en_US.UTF-8", "", false}, // an image
		{"C", "C.UTF-8", false},
		{"", "C.UTF-8", false},
	} {
		env := map[string]string{}
		if tt.lang != "" {
			env["LANG"] = tt.lang
		}
		if got := localeWarning(env, tt.locale); (got != "") != tt.warns || tt.warns && !strings.Contains(got, "LANG=C.UTF-8") {
			t.Errorf("LANG=%s on a base with %q: %q, want a warning: %v", tt.lang, tt.locale, got, tt.warns)
		}
	}
}
