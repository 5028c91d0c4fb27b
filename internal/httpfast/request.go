package httpfast

import (
	"bytes"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// request makes a request of the head at the beginning of b, and tells its length. It
// is nil, and net/http will judge, if b has no whole head or there is anything in it that
// hot requests need not have: what comes from here must be what net/http would make of
// it. The body is the caller's.
func (s *Server) request(b []byte) (r *http.Request, length int) {
	end := bytes.Index(b, headEnd)
	if end < 0 {
		return nil, 0
	}
	line, lines, _ := strings.Cut(string(b[:end]), "\r\n")
	method, path, ok := target(line)
	if !ok || !s.Wants(method, path) {
		return nil, 0
	}
	r = &http.Request{Method: method, URL: &url.URL{Path: path}, RequestURI: path, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, 8)}
	values := make([]string, 0, 8) // of all headers, which saves allocations
	for more := lines != ""; more; {
		line, lines, more = strings.Cut(lines, "\r\n")
		name, value, ok := header(line)
		if !ok || !s.meaning(r, name, value) {
			return nil, 0
		}
		if name == "Host" || name == "Transfer-Encoding" || name == "Trailer" {
			continue
		}
		if r.Header[name] != nil { // once is enough
			return nil, 0
		}
		values = append(values, value)
		r.Header[name] = values[len(values)-1 : len(values) : len(values)]
	}
	chunked, sized := r.TransferEncoding != nil, r.Header["Content-Length"] != nil
	switch {
	case r.Host == "", chunked && sized, r.Trailer != nil && !chunked, method == http.MethodGet && (chunked || sized):
		return nil, 0
	case chunked:
		r.ContentLength = -1
	}
	return r, end + len(headEnd)
}

// target splits a request line.
func target(line string) (method, path string, ok bool) {
	method, rest, _ := strings.Cut(line, " ")
	path, proto, _ := strings.Cut(rest, " ")
	if method != http.MethodGet && method != http.MethodPost || proto != "HTTP/1.1" || path == "" || path[0] != '/' {
		return "", "", false
	}
	for i := range len(path) {
		if c := path[i]; !isAlnum(c) && c != '-' && c != '_' && c != '.' && c != '/' {
			return "", "", false
		}
	}
	return method, path, true
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// header splits a header line.
func header(line string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(line, ":")
	if !ok || name == "" {
		return "", "", false
	}
	for i := range len(name) {
		if c := name[i]; !isAlnum(c) && c != '-' {
			return "", "", false
		}
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c >= 0x7f {
			return "", "", false
		}
	}
	return textproto.CanonicalMIMEHeaderKey(name), strings.Trim(value, " \t"), true
}

// meaning notes what a header means for the connection; false if that is more than a
// hot request may want.
func (s *Server) meaning(r *http.Request, name, value string) bool {
	switch name {
	case "Host":
		if r.Host != "" || value == "" {
			return false
		}
		for i := range len(value) {
			if c := value[i]; !isAlnum(c) && !strings.ContainsRune(".:-_[]", rune(c)) {
				return false
			}
		}
		r.Host = value
	case "Content-Length":
		n, err := strconv.ParseUint(value, 10, 63)
		r.ContentLength = int64(n)
		return err == nil
	case "Transfer-Encoding":
		if r.TransferEncoding != nil || value != "chunked" {
			return false
		}
		r.TransferEncoding = []string{value}
	case "Trailer":
		if r.Trailer != nil {
			return false
		}
		r.Trailer = http.Header{}
		for _, t := range strings.Split(value, ",") {
			t = textproto.CanonicalMIMEHeaderKey(strings.Trim(t, " \t"))
			if !slices.Contains(s.Trailers, t) {
				return false
			}
			r.Trailer[t] = nil
		}
	case "Connection":
		return strings.EqualFold(value, "keep-alive")
	case "Expect", "Upgrade", "Pragma", "Http2-Settings":
		return false
	}
	return true
}
