package telemetry

import (
	"bytes"
	"unicode/utf8"
)

// WholeRunes returns text without an incomplete UTF-8 sequence at its end, which remains if
// text was cut within a character. It does not change other bytes that are not UTF-8.
func WholeRunes[T string | []byte](text T) T {
	for i := len(text) - 1; i >= max(0, len(text)-utf8.UTFMax); i-- {
		if utf8.RuneStart(text[i]) {
			if !utf8.FullRune([]byte(text[i:])) {
				return text[:i]
			}
			break
		}
	}
	return text
}

// lines splits a stream into lines. Only \n ends a line (LOG-10). A line longer than maxLine
// is emitted in pieces, cut at character boundaries (TL-26).
type lines struct {
	emit func(Message)
	line []byte // the beginning of an unfinished line
}

func (l *lines) write(p []byte) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i >= 0 && i <= maxLine && len(l.line) == 0 {
			l.emit(Message{Text: p[:i]}) // the usual case needs no copy
			p = p[i+1:]
			continue
		}
		part := p
		if i >= 0 {
			part = p[:i]
		}
		if len(part) > 0 && len(l.line) == maxLine {
			l.cut()
		}
		part = part[:min(len(part), maxLine-len(l.line))]
		l.line = append(l.line, part...)
		p = p[len(part):]
		if i == len(part) {
			l.end()
			p = p[1:]
		}
	}
}

// cut emits the first piece of a long line. An incomplete character at its end becomes the
// beginning of the next piece.
func (l *lines) cut() {
	text := WholeRunes(l.line)
	l.emit(Message{Text: text})
	l.line = append(l.line[:0], l.line[len(text):]...)
}

func (l *lines) flush(bool) {
	if len(l.line) > 0 {
		l.end()
	}
}

func (l *lines) end() {
	l.emit(Message{Text: l.line})
	l.line = l.line[:0]
	if cap(l.line) > readBytes {
		l.line = nil // do not keep the memory of one long line
	}
}
