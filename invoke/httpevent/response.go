package httpevent

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// MaxHead is the most bytes of a response's status, headers and cookies in the function's
// answer, and of a prelude: a CHOICE, about what clients accept.
const MaxHead = 64 << 10

// Response is the HTTP response that a function's answer describes.
type Response struct {
	Status int
	// Header has the function's headers and cookies, and a Content-Type in any case. It has
	// none that describes the connection.
	Header http.Header
	// Length is the Content-Length that the function gave, or "". It is right only for a
	// response to HEAD, which has no body.
	Length string
	Body   []byte
}

// ParseResponse returns the response of a complete answer (INV-46 to INV-50). The error says
// what is wrong with the answer, for its author.
func ParseResponse(answer []byte) (*Response, error) {
	answer = bytes.TrimSpace(answer)
	if !json.Valid(answer) {
		return nil, errors.New("the answer is not JSON")
	}
	if answer[0] != '{' {
		return inferred(answer)
	}
	var body, encoded []byte
	head := head{defaultType: "application/json"}
	for name, value := range members(answer) {
		switch string(name) {
		case "body":
			if body = value; string(value) == "null" {
				body = nil
			}
		case "isBase64Encoded":
			encoded = value
		default:
			head.take(name, value)
		}
	}
	if head.status == nil { // INV-46
		return inferred(answer)
	}
	res, err := head.response()
	if err != nil {
		return nil, err
	}
	res.Body, err = bodyOf(body, string(encoded) == "true")
	return res, err
}

// inferred returns the response of an answer that has no statusCode (INV-46).
func inferred(answer []byte) (*Response, error) {
	body, err := bodyOf(answer, false)
	return &Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: body}, err
}

// bodyOf returns the bytes of a body: of a string its text, of another value its JSON
// without white space (INV-46).
func bodyOf(value []byte, encoded bool) ([]byte, error) {
	switch {
	case value == nil:
		return nil, nil
	case value[0] != '"':
		if encoded {
			return nil, errors.New("isBase64Encoded is true, but body is not a string")
		}
		var b bytes.Buffer
		err := json.Compact(&b, value)
		return b.Bytes(), err
	}
	text, err := unquote(value)
	if err != nil || !encoded {
		return text, err
	}
	n, err := base64.StdEncoding.Decode(text, text) // it writes behind what it reads
	if err != nil {
		return nil, fmt.Errorf("isBase64Encoded is true, but body is not base64: %w", err)
	}
	return text[:n], nil
}

// unquote returns the text of a JSON string, in memory of its own.
func unquote(value []byte) ([]byte, error) {
	if bytes.IndexByte(value, '\\') < 0 {
		return slices.Clone(value[1 : len(value)-1]), nil
	}
	var s string
	err := json.Unmarshal(value, &s)
	return []byte(s), err
}

// head collects what an answer or a prelude says before its body.
type head struct {
	defaultType              string // content type if there is none
	status, headers, cookies []byte // JSON; nil if there is none
}

// take notes a member. null is as good as no member.
func (h *head) take(name, value []byte) {
	if string(value) == "null" {
		value = nil
	}
	switch string(name) {
	case "statusCode":
		h.status = value
	case "headers":
		h.headers = value
	case "cookies":
		h.cookies = value
	}
}

// response returns the response without its body.
func (h *head) response() (*Response, error) {
	if n := len(h.headers) + len(h.cookies); n > MaxHead {
		return nil, fmt.Errorf("headers and cookies have %d bytes; at most %d are allowed", n, MaxHead)
	}
	res := &Response{Status: http.StatusOK, Header: http.Header{}}
	if h.status != nil {
		code := strings.Trim(string(h.status[:min(len(h.status), 16)]), `"`) // a string is accepted too
		n, err := strconv.ParseFloat(code, 64)                               // whoever computes it may give 200.0
		if err != nil || n != math.Trunc(n) || n < 200 || n > 599 {
			return nil, fmt.Errorf("statusCode %s: must be a number from 200 to 599", h.status[:min(len(h.status), 40)])
		}
		res.Status = int(n)
	}
	if h.headers != nil {
		if h.headers[0] != '{' {
			return nil, errors.New("headers: must be an object of names to strings")
		}
		for name, value := range members(h.headers) {
			if err := res.addHeader(name, value); err != nil {
				return nil, err
			}
		}
	}
	if h.cookies != nil {
		var list []string
		if err := json.Unmarshal(h.cookies, &list); err != nil {
			return nil, errors.New("cookies: must be an array of strings")
		}
		for _, c := range list {
			if !validValue(c) {
				return nil, fmt.Errorf("cookies: %q has a character that a header cannot have", c)
			}
			res.Header.Add("Set-Cookie", c)
		}
	}
	if res.Header["Content-Type"] == nil {
		res.Header.Set("Content-Type", h.defaultType)
	}
	return res, nil
}

// addHeader adds a header; value is JSON. A number or a boolean is its text.
func (r *Response) addHeader(name, value []byte) error {
	key := http.CanonicalHeaderKey(string(name))
	if !validName(key) {
		return fmt.Errorf("headers: %q is not the name of a header", name)
	}
	text := string(value)
	switch value[0] {
	case '"':
		v, err := unquote(value)
		if err != nil {
			return err
		}
		text = string(v)
	case '{', '[':
		return fmt.Errorf("headers: the value of %s must be a string", name)
	case 'n': // null
		return nil
	}
	if !validValue(text) {
		return fmt.Errorf("headers: the value of %s has a character that a header cannot have", name)
	}
	switch lower := strings.ToLower(key); {
	case lower == "content-length":
		if _, err := strconv.ParseUint(text, 10, 63); err == nil {
			r.Length = text
		}
	case !slices.Contains(hopByHop, lower):
		r.Header.Add(key, text) // names that differ in case only are one header
	}
	return nil
}

// validName reports whether s is a token (RFC 9110, section 5.6.2).
func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			continue
		}
		return false
	}
	return s != ""
}

// validValue reports whether s has no character with which it could end its line, or that
// clients refuse.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
