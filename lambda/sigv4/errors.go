package sigv4

import (
	"fmt"
	"net/http"
	"strings"
)

// Error is a refusal in AWS's words. Status is of HTTP, Type the error's name as clients
// of the Lambda API know it.
type Error struct {
	Status  int
	Type    string
	Message string
}

func (e *Error) Error() string { return e.Message }

// The refusals that callers make or look for themselves.
var (
	// ErrUnsigned says that a request has no signature at all.
	ErrUnsigned = &Error{http.StatusForbidden, "MissingAuthenticationTokenException", "Missing Authentication Token"}
	// ErrUnknownKey is for access keys and session tokens that do not exist.
	ErrUnknownKey = &Error{http.StatusForbidden, "UnrecognizedClientException", "The security token included in the request is invalid."}
	// ErrMismatch is for signatures that were made with another secret or of another request.
	ErrMismatch = &Error{http.StatusForbidden, invalid, "The request signature we calculated does not match the signature you provided. " +
		"Check your AWS Secret Access Key and signing method. Consult the service documentation for details."}
	// ErrPayload says that the body is not the one that was signed.
	ErrPayload = &Error{http.StatusForbidden, invalid, "The body of the request does not have the SHA-256 that was signed, see x-amz-content-sha256."}
)

const (
	invalid    = "InvalidSignatureException"
	incomplete = "IncompleteSignatureException"
)

func invalidf(format string, args ...any) error { return refusal(invalid, format, args) }

func incompletef(format string, args ...any) error { return refusal(incomplete, format, args) }

// maxQuoted bounds what an error repeats of a request.
const maxQuoted = 200

// refusal makes an error of which each argument is shortened.
func refusal(kind, format string, args []any) error {
	for i, a := range args {
		if s, ok := a.(string); ok && len(s) > maxQuoted {
			args[i] = strings.ToValidUTF8(s[:maxQuoted], "") + "…"
		}
	}
	return &Error{http.StatusForbidden, kind, fmt.Sprintf(format, args...)}
}
