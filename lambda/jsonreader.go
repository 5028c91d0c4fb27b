package lambda

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits of a request's JSON.
const (
	maxDepth  = 64      // of objects and lists within each other
	maxNumber = 64      // characters of a number
	maxKept   = 1 << 20 // bytes of all names and values that are kept in memory
	readSize  = 32 << 10
)

// errKept is the error of a request with more than maxKept bytes besides its code.
var errKept = errors.New("the request has too much besides its code")

// jsonReader reads JSON value by value from a stream, and keeps no more than is asked for.
type jsonReader struct {
	r     *bufio.Reader
	kept  int
	depth int
}

func newJSONReader(r io.Reader) *jsonReader { return &jsonReader{r: bufio.NewReaderSize(r, readSize)} }

// peek returns the first byte of the next token, without taking it.
func (j *jsonReader) peek() (byte, error) {
	for {
		c, err := j.r.ReadByte()
		if err != nil {
			return 0, cut(err)
		}
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		}
		return c, j.r.UnreadByte()
	}
}

// cut makes an end within a value an error of the request.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return malformed("Unexpected end-of-input in the request body")
	}
	return err
}

// expect takes a byte that must be c.
func (j *jsonReader) expect(c byte) error {
	got, err := j.peek()
	if err != nil {
		return err
	}
	if got != c {
		return unexpected(got)
	}
	_, err = j.r.ReadByte()
	return err
}

func unexpected(c byte) error {
	return malformed("Unexpected character (%q (code %d)) in the request body", rune(c), c)
}

// end reports whether nothing but white space follows.
func (j *jsonReader) end() error {
	for {
		c, err := j.r.ReadByte()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			return unexpected(c)
		}
	}
}

// keep counts bytes that stay in memory.
func (j *jsonReader) keep(n int) error {
	if j.kept += n; j.kept > maxKept {
		return errKept
	}
	return nil
}

// object reads an object. each is called with the name of each member, and must read its value.
func (j *jsonReader) object(each func(name string) error) error {
	return j.list('{', '}', func() error {
		c, err := j.peek()
		if err != nil {
			return err
		}
		if c != '"' {
			return unexpected(c)
		}
		name, err := j.text()
		if err == nil {
			err = j.expect(':')
		}
		if err != nil {
			return err
		}
		return each(name)
	})
}

// array reads an array. each must read one element.
func (j *jsonReader) array(each func() error) error { return j.list('[', ']', each) }

func (j *jsonReader) list(first, last byte, each func() error) error {
	if j.depth++; j.depth > maxDepth {
		return malformed("The request body has more than %d levels", maxDepth)
	}
	defer func() { j.depth-- }()
	if err := j.expect(first); err != nil {
		return err
	}
	c, err := j.peek()
	if err != nil {
		return err
	}
	if c == last {
		_, err = j.r.ReadByte()
		return err
	}
	for {
		if err := each(); err != nil {
			return err
		}
		c, err := j.peek()
		if err != nil {
			return err
		}
		if c != ',' && c != last {
			return unexpected(c)
		}
		if _, err := j.r.ReadByte(); err != nil {
			return err
		}
		if c == last {
			return nil
		}
	}
}

// literal takes true, false or null.
func (j *jsonReader) literal(word string) error {
	for i := range len(word) {
		c, err := j.r.ReadByte()
		if err != nil {
			return cut(err)
		}
		if c != word[i] {
			return unexpected(c)
		}
	}
	return nil
}

// number takes a number and returns its text.
func (j *jsonReader) number() (string, error) {
	var text []byte
	for {
		c, err := j.r.ReadByte()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		if (c < '0' || c > '9') && c != '-' && c != '+' && c != '.' && c != 'e' && c != 'E' {
			if err := j.r.UnreadByte(); err != nil {
				return "", err
			}
			break
		}
		if text = append(text, c); len(text) > maxNumber {
			return "", malformed("A number in the request body has more than %d characters", maxNumber)
		}
	}
	if !isNumber(text) {
		return "", malformed("%q in the request body is not a number", text)
	}
	return string(text), j.keep(len(text))
}

// isNumber reports whether a text is a number of JSON, which is less than Go's functions take.
func isNumber(text []byte) bool {
	rest := bytes.TrimPrefix(text, []byte("-"))
	digits := func() int {
		n := 0
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		rest = rest[n:]
		return n
	}
	leading := len(rest) > 1 && rest[0] == '0' && rest[1] >= '0' && rest[1] <= '9'
	if digits() == 0 || leading {
		return false
	}
	if len(rest) > 0 && rest[0] == '.' {
		if rest = rest[1:]; digits() == 0 {
			return false
		}
	}
	if len(rest) > 0 && (rest[0] == 'e' || rest[0] == 'E') {
		if rest = rest[1:]; len(rest) > 0 && (rest[0] == '+' || rest[0] == '-') {
			rest = rest[1:]
		}
		if digits() == 0 {
			return false
		}
	}
	return len(rest) == 0
}

// text reads a string into memory.
func (j *jsonReader) text() (string, error) {
	s := j.string()
	var all []byte
	buf := make([]byte, 512)
	for {
		n, err := s.Read(buf)
		if err := j.keep(n); err != nil {
			return "", err
		}
		all = append(all, buf[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	if !utf8.Valid(all) {
		return "", malformed("A string in the request body is not UTF-8")
	}
	return string(all), nil
}

// string returns a reader of the content of the string that follows. It must be read to its end.
func (j *jsonReader) string() *stringReader { return &stringReader{j: j} }

// A stringReader reads the bytes of a string of JSON.
type stringReader struct {
	j       *jsonReader
	begun   bool
	ended   bool
	pending []byte // of an escape
	store   [utf8.UTFMax]byte
}

// Read implements io.Reader.
func (s *stringReader) Read(p []byte) (int, error) {
	if !s.begun {
		if err := s.j.expect('"'); err != nil {
			return 0, err
		}
		s.begun = true
	}
	n := 0
	for n < len(p) && !s.ended {
		if len(s.pending) > 0 {
			k := copy(p[n:], s.pending)
			s.pending, n = s.pending[k:], n+k
			continue
		}
		k, err := s.plain(p[n:])
		n += k
		if err == nil && k == 0 {
			err = s.special()
		}
		if err != nil {
			return n, err
		}
	}
	if n == 0 && s.ended && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// plain copies what is buffered up to the next quote, escape or control character.
func (s *stringReader) plain(p []byte) (int, error) {
	if s.j.r.Buffered() == 0 {
		if _, err := s.j.r.Peek(1); err != nil {
			return 0, cut(err)
		}
	}
	there, err := s.j.r.Peek(min(len(p), s.j.r.Buffered()))
	if err != nil {
		return 0, cut(err)
	}
	n := 0
	for n < len(there) && there[n] != '"' && there[n] != '\\' && there[n] >= ' ' {
		n++
	}
	copy(p, there[:n])
	_, err = s.j.r.Discard(n)
	return n, err
}

// special takes a quote or an escape.
func (s *stringReader) special() error {
	c, err := s.j.r.ReadByte()
	if err != nil {
		return cut(err)
	}
	switch c {
	case '"':
		s.ended = true
		return nil
	case '\\':
	default:
		return malformed("Illegal unquoted character (code %d) in a string of the request body", c)
	}
	if c, err = s.j.r.ReadByte(); err != nil {
		return cut(err)
	}
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		return s.unicode()
	default:
		return malformed("Unrecognized character escape (code %d) in the request body", c)
	}
	s.store[0] = c
	s.pending = s.store[:1]
	return nil
}

// unicode takes the digits of \u, and a second escape if both are one character.
func (s *stringReader) unicode() error {
	r, err := s.digits()
	if err != nil {
		return err
	}
	if utf16.IsSurrogate(r) {
		next, err := s.j.r.Peek(2)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		second := rune(-1)
		if string(next) == `\u` {
			if _, err := s.j.r.Discard(2); err != nil {
				return err
			}
			if second, err = s.digits(); err != nil {
				return err
			}
		}
		if r = utf16.DecodeRune(r, second); r == utf8.RuneError {
			return malformed("A string in the request body has half of a surrogate pair")
		}
	}
	s.pending = utf8.AppendRune(s.store[:0], r)
	return nil
}

// digits takes four hexadecimal digits.
func (s *stringReader) digits() (rune, error) {
	var hex [4]byte
	if _, err := io.ReadFull(s.j.r, hex[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		return 0, cut(err)
	}
	n, err := strconv.ParseUint(string(hex[:]), 16, 16)
	if err != nil {
		return 0, malformed("Expected a hexadecimal digit after \\u in the request body")
	}
	return rune(n), nil
}
