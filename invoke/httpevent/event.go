// Package httpevent translates between HTTP and the events of a Lambda function URL, in
// payload format 2.0 (section 5.5 of the specification): [Encode] makes the event of a
// request, [ParseResponse] makes an HTTP response of the function's answer, and [Prelude]
// reads the beginning of an answer that is streamed.
//
// Both sides are untrusted: a client can send any request that net/http accepts, and a
// function any answer. The package has no state, opens nothing, and bounds what it makes of
// its input.
package httpevent

import (
	"encoding/base64"
	"errors"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxEvent is the most bytes of an event (INV-08). A body that is sent in base64 may have
// three quarters of that.
const MaxEvent = 6 << 20

// ErrTooLarge is the error of a request whose event would have more than [MaxEvent] bytes.
var ErrTooLarge = errors.New("the event of the request is too large")

// Source has what an event says that an http.Request of a server does not.
type Source struct {
	RequestID string    // of the invocation
	TraceID   string    // value of x-amzn-trace-id
	URLID     string    // apiId and domainPrefix
	Port      string    // at which the client has connected
	At        time.Time // when the request arrived
}

// hopByHop lists the headers that describe a connection, in lower case (RFC 9110, section
// 7.6.1). They are in no event and in no response.
var hopByHop = []string{"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}

// Encode returns the event of a request and its body (INV-40 to INV-45). The path of the
// request must begin with a slash. The only error is [ErrTooLarge].
func Encode(r *http.Request, body []byte, s Source) ([]byte, error) {
	host, path := r.Host, r.URL.EscapedPath()
	method, agent := r.Method, valueOf(r.Header["User-Agent"], ",")
	b := make([]byte, 0, 2<<10)
	b = append(b, `{"version":"2.0","routeKey":"$default"`...)
	b = member(b, "rawPath", path)
	b = member(b, "rawQueryString", asciiQuery(r.URL.RawQuery))
	if list := cookies(r.Header["Cookie"]); len(list) > 0 {
		b = append(b, `,"cookies":[`...)
		for i, c := range list {
			if i > 0 {
				b = append(b, ',')
			}
			b = quote(b, c)
		}
		b = append(b, ']')
	}
	b = append(b, `,"headers":`...)
	b = object(b, headers(r, len(body), s))
	if params := parameters(r.URL.RawQuery); len(params) > 0 {
		b = append(b, `,"queryStringParameters":`...)
		b = object(b, params)
	}
	b = append(b, `,"requestContext":{"accountId":"anonymous"`...)
	b = member(b, "apiId", s.URLID)
	b = member(b, "domainName", host)
	b = member(b, "domainPrefix", s.URLID)
	b = append(b, `,"http":{"method":`...)
	b = quote(b, method)
	b = member(b, "path", path)
	b = member(b, "protocol", r.Proto)
	b = member(b, "sourceIp", sourceIP(r))
	b = member(b, "userAgent", agent)
	b = append(b, '}')
	b = member(b, "requestId", s.RequestID)
	b = append(b, `,"routeKey":"$default","stage":"$default"`...)
	b = member(b, "time", s.At.UTC().Format("02/Jan/2006:15:04:05 -0700"))
	b = append(b, `,"timeEpoch":`...)
	b = strconv.AppendInt(b, s.At.UnixMilli(), 10)
	b = append(b, '}')
	return appendBody(b, body, isText(r.Header.Get("Content-Type")) && utf8.Valid(body))
}

// appendBody adds the body, as text or in base64, and ends the event. It computes the size
// before it allocates.
func appendBody(b, body []byte, text bool) ([]byte, error) {
	size := len(b) + len(`,"body":"","isBase64Encoded":false}`)
	switch {
	case len(body) == 0: // no member body
	case text:
		size += quotedLen(body)
	default:
		size += base64.StdEncoding.EncodedLen(len(body))
	}
	if size > MaxEvent {
		return nil, ErrTooLarge
	}
	b = append(make([]byte, 0, size), b...)
	if len(body) == 0 {
		return append(b, `,"isBase64Encoded":false}`...), nil
	}
	b = append(b, `,"body":`...)
	if text {
		return append(quote(b, body), `,"isBase64Encoded":false}`...), nil
	}
	b = base64.StdEncoding.AppendEncode(append(b, '"'), body)
	return append(b, `","isBase64Encoded":true}`...), nil
}

// isText reports whether a body of that content type is text in an event (INV-44). AWS does
// not document its list; this one was measured by others. A form is not in it.
func isText(contentType string) bool {
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
		return false
	}
	switch kind {
	case "application/json", "application/xml", "application/javascript":
		return true
	}
	return strings.HasPrefix(kind, "text/")
}

// pair is a name with its value.
type pair struct{ name, value string }

// headers returns the headers of an event, sorted: those of the request in lower case, and
// those that the front sets, whatever the client has sent in their place (INV-42).
func headers(r *http.Request, size int, s Source) []pair {
	list := make([]pair, 0, len(r.Header)+6)
	drop := slices.Concat(hopByHop, []string{"content-length", "host", "x-amzn-trace-id", "x-forwarded-for", "x-forwarded-port", "x-forwarded-proto"})
	for _, line := range r.Header["Connection"] { // it names others that describe the connection
		for name := range strings.SplitSeq(line, ",") {
			drop = append(drop, strings.ToLower(strings.TrimSpace(name)))
		}
	}
	slices.Sort(drop)
	for name, values := range r.Header {
		name = strings.ToLower(name)
		if _, dropped := slices.BinarySearch(drop, name); dropped {
			continue
		}
		separator := ","
		if name == "cookie" {
			separator = "; " // RFC 9113, section 8.2.3
		}
		list = append(list, pair{name, valueOf(values, separator)})
	}
	list = append(list, pair{"host", r.Host}, pair{"x-amzn-trace-id", s.TraceID}, pair{"x-forwarded-for", sourceIP(r)},
		pair{"x-forwarded-port", s.Port}, pair{"x-forwarded-proto", "http"})
	if size > 0 || len(r.Header["Content-Length"]) > 0 {
		list = append(list, pair{"content-length", strconv.Itoa(size)})
	}
	slices.SortFunc(list, func(a, b pair) int { return strings.Compare(a.name, b.name) })
	return list
}

// valueOf joins the values of a header. Bytes that are not UTF-8 are Latin-1, as HTTP once
// defined it: so nothing of them is lost.
func valueOf(values []string, separator string) string {
	v := strings.Join(values, separator)
	if utf8.ValidString(v) {
		return v
	}
	runes := make([]rune, len(v))
	for i := range len(v) {
		runes[i] = rune(v[i])
	}
	return string(runes)
}

// cookies returns the cookies of the Cookie headers, each as name=value.
func cookies(values []string) (list []string) {
	for c := range strings.SplitSeq(valueOf(values, ";"), ";") {
		if c = strings.TrimSpace(c); c != "" {
			list = append(list, c)
		}
	}
	return list
}

// asciiQuery encodes the bytes of a query that JSON could not keep as they are.
func asciiQuery(query string) string {
	var b strings.Builder
	for i := range len(query) {
		if c := query[i]; c < utf8.RuneSelf {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

const hexDigits = "0123456789ABCDEF"

// parameters returns the decoded parameters of a query, sorted; the values of a name that
// stands more than once are joined with commas (INV-43). What cannot be decoded stays as it
// is.
func parameters(query string) []pair {
	var list []pair
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		list = append(list, pair{decode(name), decode(value)})
	}
	slices.SortStableFunc(list, func(a, b pair) int { return strings.Compare(a.name, b.name) })
	joined := list[:0]
	for i := 0; i < len(list); {
		end := i + 1
		for end < len(list) && list[end].name == list[i].name {
			end++
		}
		p := list[i]
		if end > i+1 {
			var values strings.Builder
			for j := i; j < end; j++ {
				if j > i {
					values.WriteByte(',')
				}
				values.WriteString(list[j].value)
			}
			p.value = values.String()
		}
		joined = append(joined, p)
		i = end
	}
	return joined
}

func decode(s string) string {
	d, err := url.QueryUnescape(s)
	if err != nil {
		d = s
	}
	return strings.ToValidUTF8(d, "\uFFFD")
}

// sourceIP returns the address of the client's end of the connection. Headers do not count:
// the client chooses them.
func sourceIP(r *http.Request) string {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return a.Addr().Unmap().WithZone("").String()
}
