package sigv4

import (
	"cmp"
	"crypto/sha256"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// parameter is a pair of the query, decoded.
type parameter struct {
	name, value string
}

// parseQuery decodes the query of a request's target.
func parseQuery(target string) ([]parameter, error) {
	_, raw, _ := strings.Cut(target, "?")
	var query []parameter
	for more := raw != ""; more; {
		var pair string
		pair, raw, more = strings.Cut(raw, "&")
		name, value, _ := strings.Cut(pair, "=")
		name, ok1 := unescape(name)
		value, ok2 := unescape(value)
		if !ok1 || !ok2 {
			return nil, invalidf("The query has '%s', in which %% begins no valid escape", pair)
		}
		if len(query) == maxParameters {
			return nil, invalidf("The query has more than %d parameters", maxParameters)
		}
		query = append(query, parameter{name, value})
	}
	return query, nil
}

// unescape decodes a part of a query. A plus sign is a space, as it is to net/url, which
// reads the query after this.
func unescape(s string) (string, bool) {
	if !strings.ContainsAny(s, "%+") {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '+':
			b = append(b, ' ')
		case '%':
			if i+2 >= len(s) {
				return "", false
			}
			c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", false
			}
			b = append(b, byte(c))
			i += 2
		default:
			b = append(b, s[i])
		}
	}
	return string(b), true
}

// buffers hold canonical requests while they are hashed.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// hashCanonical hashes the canonical request up to the hash of the payload.
func (s *Signature) hashCanonical(r *http.Request, f *form, query []parameter) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	b, err := appendCanonical((*buf)[:0], r, f, query)
	*buf = b[:0]
	if err != nil {
		return err
	}
	s.canonical = sha256.New()
	s.canonical.Write(b)
	return nil
}

func appendCanonical(b []byte, r *http.Request, f *form, query []parameter) ([]byte, error) {
	b = append(append(b, r.Method...), '\n')
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if !isPlainPath(path) {
		return b, invalidf("The path '%s' has an empty segment, or one that is . or .. . Send it without.", path)
	}
	b = append(appendEscaped(b, path, true), '\n')
	b = append(appendQuery(b, f, query), '\n')
	for _, name := range f.names {
		b = append(append(b, name...), ':')
		values, err := valuesOf(r, name)
		if err != nil {
			return b, err
		}
		for i, v := range values {
			if i > 0 {
				b = append(b, ',')
			}
			if len(b)+len(v) > maxCanonical {
				return b, invalidf("The path, the query and the signed headers have more than %d bytes", maxCanonical)
			}
			b = appendTrimmed(b, v)
		}
		b = append(b, '\n')
	}
	return append(append(append(b, '\n'), f.signed...), '\n'), nil
}

// isPlainPath reports whether all that a path may be taken for is itself. AWS removes empty
// segments and those with dots before it hashes, so that several paths have one signature.
func isPlainPath(path string) bool {
	rest, ok := strings.CutPrefix(path, "/")
	for more := ok && rest != ""; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		if segment == "" && (more || rest != "") || segment == "." || segment == ".." {
			return false
		}
	}
	return ok
}

// appendQuery appends the parameters, sorted as they are encoded, less the signature.
func appendQuery(b []byte, f *form, query []parameter) []byte {
	encoded := make([]parameter, 0, len(query))
	for _, p := range query {
		if f.presigned && p.name == "X-Amz-Signature" {
			continue
		}
		encoded = append(encoded, parameter{escape(p.name), escape(p.value)})
	}
	slices.SortFunc(encoded, func(a, b parameter) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.value, b.value)) })
	for i, p := range encoded {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(append(append(b, p.name...), '='), p.value...)
	}
	return b
}

func escape(s string) string {
	for i := range len(s) {
		if !isUnreserved(s[i]) {
			return string(appendEscaped(nil, s, false))
		}
	}
	return s
}

// appendEscaped escapes all but the unreserved characters of RFC 3986, and slashes if they
// stay. What is escaped already is escaped again, as AWS wants it of paths.
func appendEscaped(b []byte, s string, slashes bool) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; isUnreserved(c) || slashes && c == '/' {
			b = append(b, c)
		} else {
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return b
}

func isUnreserved(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '.' || c == '_' || c == '~'
}

// valuesOf finds a signed header. Of some, net/http makes fields of the request.
func valuesOf(r *http.Request, name string) ([]string, error) {
	switch name {
	case "host":
		return []string{r.Host}, nil
	case "transfer-encoding":
		if r.TransferEncoding != nil {
			return r.TransferEncoding, nil
		}
	}
	values := r.Header[http.CanonicalHeaderKey(name)]
	if values == nil {
		return nil, invalidf("SignedHeaders names '%s', which is not in the request.", name)
	}
	return values, nil
}

// appendTrimmed appends a header's value without spaces around it, and with one in place of
// several.
func appendTrimmed(b []byte, v string) []byte {
	v = strings.Trim(v, " \t")
	for i := range len(v) {
		if v[i] != ' ' || v[i-1] != ' ' {
			b = append(b, v[i])
		}
	}
	return b
}
