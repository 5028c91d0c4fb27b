package httpevent

import (
	"bytes"
	"iter"
	"unicode/utf8"
)

// member adds a member with a string to an object that is not empty.
func member(b []byte, name, value string) []byte {
	b = append(b, ',')
	b = quote(b, name)
	b = append(b, ':')
	return quote(b, value)
}

// object adds an object of strings. Names must differ.
func object(b []byte, list []pair) []byte {
	b = append(b, '{')
	for i, p := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = quote(b, p.name)
		b = append(b, ':')
		b = quote(b, p.value)
	}
	return append(b, '}')
}

// short holds the second byte of escapes of two bytes.
var short = [...]byte{'\b': 'b', '\t': 't', '\n': 'n', '\f': 'f', '\r': 'r', '"': '"', '\\': '\\'}

// quote adds s as a JSON string. Bytes that are not UTF-8 become U+FFFD. encoding/json
// would make a copy of a body first.
func quote[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	done := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			if r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
		}
		b = append(b, s[done:i]...)
		switch {
		case c >= utf8.RuneSelf:
			b = append(b, "\uFFFD"...)
		case int(c) < len(short) && short[c] != 0:
			b = append(b, '\\', short[c])
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		done = i
	}
	b = append(b, s[done:]...)
	return append(b, '"')
}

// quotedLen returns how many bytes quote adds for s, which must be UTF-8, besides the quotes.
func quotedLen(s []byte) (n int) {
	for _, c := range s {
		switch {
		case int(c) < len(short) && short[c] != 0:
			n += 2
		case c < ' ':
			n += 6
		default:
			n++
		}
	}
	return n
}

// members yields the members of a JSON object, which must be valid: the name, and the text of
// the value. It copies nothing but a name with escapes: an answer can have 6 MB, and as many
// members as fit.
func members(object []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		for i := skipSpace(object, 1); i < len(object) && object[i] == '"'; {
			end := valueEnd(object, i)
			name := object[i+1 : end-1]
			if bytes.IndexByte(name, '\\') >= 0 {
				name, _ = unquote(object[i:end]) // it is valid
			}
			i = skipSpace(object, skipSpace(object, end)+1) // over the colon
			end = valueEnd(object, i)
			if !yield(name, object[i:end]) {
				return
			}
			i = skipSpace(object, skipSpace(object, end)+1) // over the comma or the brace
		}
	}
}

// skipSpace returns the position of the first byte from i on that is not white space.
func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// valueEnd returns the end of the value that begins at i in valid JSON.
func valueEnd(b []byte, i int) int {
	for depth := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return min(i+1, len(b))
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 { // the end of a number or word before it
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
	}
	return len(b)
}
