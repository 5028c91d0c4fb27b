package rapid

import (
	"encoding/json"
	"regexp"
	"strings"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

var errorTypePattern = regexp.MustCompile(`(Runtime|Function)\.[A-Z][a-zA-Z]+`)

// maxErrorType is the most bytes that are kept of an error type from a process (RT-45).
// Records repeat it.
const maxErrorType = 1024

// cutType returns t, cut to at most maxErrorType bytes at a character boundary.

func cutType(t string) string {
	if len(t) <= maxErrorType {
		return t
	}
	return telemetry.WholeRunes(t[:maxErrorType])
}

// sanitizeType returns the platform's error type for the one that a runtime has sent (RT-45).
func sanitizeType(t string) string {
	t = cutType(t)
	switch {
	case errorTypePattern.MatchString(t):
		return t
	case strings.HasPrefix(t, "Function."):
		return "Function.Unknown"
	}
	return errRuntimeUnknown
}

const (
	maxCause     = 64 << 10 // RT-47
	maxCauseText = 30720
)

// cause is the X-Ray error cause of RT-46.
type cause struct {
	Exceptions []exception `json:"exceptions"`
	Dir        string      `json:"working_directory"`
	Paths      []string    `json:"paths"`
	Message    string      `json:"message,omitempty"`
}

type exception struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Stack   []frame `json:"stack"`
}

type frame struct {
	Path  string `json:"path"`
	Line  int    `json:"line"`
	Label string `json:"label"`
}

// sanitizeCause returns the valid part of a cause, or nil if there is none (RT-46, RT-47).
func sanitizeCause(raw []byte) []byte {
	var c cause
	if len(raw) == 0 || json.Unmarshal(raw, &c) != nil {
		return nil
	}
	if len(c.Exceptions) == 0 && c.Dir == "" && len(c.Paths) == 0 && c.Message == "" {
		return nil
	}
	for tenths := 10; tenths >= 2; tenths -= 2 {
		part := c
		part.Exceptions = c.Exceptions[:len(c.Exceptions)*tenths/10]
		part.Paths = c.Paths[:len(c.Paths)*tenths/10]
		if b := causeBytes(part); len(b) <= maxCause {
			return b
		}
	}
	for most := maxCauseText; ; most /= 2 { // JSON escapes some characters with six bytes
		if b := causeBytes(cause{Dir: cutText(c.Dir, most), Message: cutText(c.Message, most)}); len(b) <= maxCause {
			return b
		}
	}
}

func causeBytes(c cause) []byte {
	b, err := json.Marshal(c)
	if err != nil { // strings and numbers cannot fail
		return nil
	}
	return b
}

// cutText returns s, cut to at most most bytes at a character boundary and then marked with
// "..." (RT-47).
func cutText(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return telemetry.WholeRunes(s[:most]) + "..."
}
