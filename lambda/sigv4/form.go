package sigv4

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Bounds of what is read of a request, so that what it may cost is known.
const (
	maxAuthorization = 8 << 10  // of the header Authorization
	maxSigned        = 64       // signed headers
	maxTarget        = 16 << 10 // of the path and the query
	maxParameters    = 256      // of the query
	maxCanonical     = 96 << 10 // of the path, the query and the signed headers, as they are signed
)

// maxExpires is how long a presigned URL may be valid.
const maxExpires = 7 * 24 * time.Hour

// form is what the header Authorization or the query says of a signature.
type form struct {
	credential, signed, signature string
	names                         []string // of the headers that are signed, sorted
	dateName, date                string   // the header, which is "" if the date is in the query
	presigned                     bool
	expires                       time.Duration // of presigned URLs
	token                         string
	hash                          string // of the payload, in the query
}

// find finds the one signature that a request has.
func find(h http.Header, query []parameter) (*form, error) {
	presigned := false
	for _, p := range query {
		switch p.name {
		case "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature":
			presigned = true
		}
	}
	values := h["Authorization"]
	switch {
	case len(values) > 1:
		return nil, incompletef("The request has %d Authorization headers. Send one.", len(values))
	case len(values) == 1 && presigned:
		return nil, incompletef("The request has a signature in the header Authorization and one in the query. Send one.")
	case len(values) == 0 && !presigned:
		return nil, ErrUnsigned
	}
	var f *form
	var err error
	if presigned {
		f, err = ofQuery(query)
	} else {
		f, err = ofHeader(values[0], h)
	}
	if err != nil {
		return nil, err
	}
	var hash [32]byte
	if !decodeHash(hash[:], f.signature) {
		return nil, incompletef("Signature must be 64 hexadecimal digits in lower case, got '%s'", f.signature)
	}
	f.names = strings.SplitN(f.signed, ";", maxSigned+1)
	if len(f.names) > maxSigned {
		return nil, incompletef("SignedHeaders names more than %d headers", maxSigned)
	}
	for i, name := range f.names {
		if name == "" || strings.ToLower(name) != name || i > 0 && f.names[i-1] >= name {
			return nil, incompletef("SignedHeaders must name headers in lower case, sorted, each once, got '%s'", f.signed)
		}
	}
	return f, nil
}

// ofHeader reads the header Authorization.
func ofHeader(value string, h http.Header) (*form, error) {
	if len(value) > maxAuthorization {
		return nil, incompletef("The header Authorization has %d bytes, of at most %d", len(value), maxAuthorization)
	}
	f := &form{}
	name, rest, _ := strings.Cut(value, " ")
	if strings.HasPrefix(name, "AWS4-") && name != algorithm {
		return nil, incompletef("Unsupported AWS 'algorithm': '%s', use %s", name, algorithm)
	}
	for rest != "" && name == algorithm {
		var pair string
		pair, rest, _ = strings.Cut(rest, ",")
		pair = strings.Trim(pair, " ")
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, incompletef("'%s' not a valid key=value pair (missing equal-sign) in Authorization header", pair)
		}
		var field *string
		switch name {
		case "Credential":
			field = &f.credential
		case "SignedHeaders":
			field = &f.signed
		case "Signature":
			field = &f.signature
		default:
			return nil, incompletef("Authorization header has the unknown parameter '%s'", name)
		}
		if *field != "" {
			return nil, incompletef("Authorization header has the parameter '%s' twice", name)
		}
		*field = value
	}
	if f.dateName = "x-amz-date"; h["X-Amz-Date"] == nil {
		f.dateName = "date"
	}
	dates := h[http.CanonicalHeaderKey(f.dateName)]
	// AWS repeats the value here. It may be a secret of another kind, so it stays out of logs.
	var lacks []string
	for _, p := range []struct{ name, value string }{{"Credential", f.credential}, {"Signature", f.signature}, {"SignedHeaders", f.signed}} {
		if p.value == "" {
			lacks = append(lacks, "Authorization header requires '"+p.name+"' parameter.")
		}
	}
	if len(dates) == 0 {
		lacks = append(lacks, "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	if lacks != nil {
		return nil, incompletef("%s", strings.Join(lacks, " "))
	}
	if len(dates) > 1 {
		return nil, incompletef("The request has %d headers %s. Send one.", len(dates), f.dateName)
	}
	f.date = dates[0]
	if tokens := h["X-Amz-Security-Token"]; len(tokens) > 1 {
		return nil, incompletef("The request has %d headers x-amz-security-token. Send one.", len(tokens))
	} else if len(tokens) == 1 {
		f.token = tokens[0]
	}
	return f, nil
}

// ofQuery reads the parameters of a presigned URL.
func ofQuery(query []parameter) (*form, error) {
	f := &form{presigned: true}
	var name, expires string
	fields := map[string]*string{
		"X-Amz-Algorithm": &name, "X-Amz-Credential": &f.credential, "X-Amz-Date": &f.date, "X-Amz-Expires": &expires,
		"X-Amz-SignedHeaders": &f.signed, "X-Amz-Signature": &f.signature, "X-Amz-Security-Token": &f.token, "X-Amz-Content-Sha256": &f.hash,
	}
	seen := map[string]bool{}
	for _, p := range query {
		if field := fields[p.name]; field != nil {
			if seen[p.name] {
				return nil, incompletef("The query has the parameter '%s' twice", p.name)
			}
			seen[p.name], *field = true, p.value
		}
	}
	for _, name := range []string{"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-SignedHeaders", "X-Amz-Date", "X-Amz-Expires"} {
		if *fields[name] == "" {
			return nil, incompletef("AWS query-string parameters must include '%s'. Re-examine the query-string parameters.", name)
		}
	}
	if name != algorithm {
		return nil, incompletef("Unsupported AWS 'algorithm': '%s', use %s", name, algorithm)
	}
	seconds, err := strconv.ParseUint(expires, 10, 32)
	f.expires = time.Duration(seconds) * time.Second
	if err != nil || seconds == 0 || f.expires > maxExpires {
		return nil, incompletef("X-Amz-Expires must be a number of seconds from 1 to %d, got '%s'", int(maxExpires.Seconds()), expires)
	}
	return f, nil
}

// checkSigned checks that what must be signed is: the host, the date, and every x-amz-*.
func (f *form) checkSigned(h http.Header) error {
	if !f.isSigned("host") {
		return invalidf("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	if f.dateName != "" && !f.isSigned(f.dateName) {
		return invalidf("'%s' must be a 'SignedHeader' in the AWS Authorization.", http.CanonicalHeaderKey(f.dateName))
	}
	for name := range h {
		const prefix = "x-amz-"
		if len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) && !f.isSigned(strings.ToLower(name)) {
			return invalidf("'%s' must be a 'SignedHeader' in the AWS Authorization.", name)
		}
	}
	return nil
}

func (f *form) isSigned(name string) bool {
	for _, n := range f.names {
		if n == name {
			return true
		}
	}
	return false
}
