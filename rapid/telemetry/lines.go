package telemetry

import "bytes"

// lines cuts a stream into lines. Only \n ends a line (LOG-10); one that grows beyond
// maxLine is emitted in pieces (TL-26).
type lines struct {
	emit func(Message)
	line []byte // the beginning of an unfinished line
}

func (l *lines) write(p []byte) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i >= 0 && i <= maxLine && len(l.line) == 0 {
			l.emit(Message{Text: p[:i]}) // the usual case: no copy
			p = p[i+1:]
			continue
		}
		part := p
		if i >= 0 {
			part = p[:i]
		}
		if len(part) > 0 && len(l.line) == maxLine {
			l.end()
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

func (l *lines) flush(bool) {
	if len(l.line) > 0 {
		l.end()
	}
}

func (l *lines) end() {
	l.emit(Message{Text: l.line})
	l.line = l.line[:0]
	if cap(l.line) > readBytes {
		l.line = nil // one long line must not keep its memory
	}
}
