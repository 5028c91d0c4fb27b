package telemetry

import (
	"bytes"
	"encoding/binary"
	"time"
)

// Level is the level of a framed message (LOG-03). It is "" for a message without a level and
// for plain lines.
type Level string

// The levels of LOG-03, lowest first. LevelWarn and those before it are also the valid system
// levels (LOG-41).
const (
	LevelTrace Level = "TRACE"
	LevelDebug Level = "DEBUG"
	LevelInfo  Level = "INFO"
	LevelWarn  Level = "WARN"
	LevelError Level = "ERROR"
	LevelFatal Level = "FATAL"
)

var frameLevels = [...]Level{"", LevelTrace, LevelDebug, LevelInfo, LevelWarn, LevelError, LevelFatal}

// Message is one event that a process has logged: a line, or a frame.
type Message struct {
	Text  []byte    // without its newline; valid during the call only
	Time  time.Time // from the frame (LOG-07); zero means now
	Level Level
}

const (
	frameHeader = 16
	frameMagic  = 0xA55A0000
	maxFrame    = 1 << 20 // LOG-09
	lostSync    = "sandboxd: the log descriptor carries something that is no frame; from here on it is read line by line"
)

// frames splits the stream of section 7.1 into messages. It accepts pieces of any size. From
// the first byte that does not begin a frame on, it treats the stream as lines (LOG-04).
type frames struct {
	emit   func(Message)
	header []byte // of the current frame, up to frameHeader bytes
	left   int64  // missing bytes of its body, once the header is complete
	body   []byte // at most maxFrame bytes of it
	lost   *lines // splits the stream once it is not framed any more; else nil
}

func (f *frames) write(p []byte) {
	for len(p) > 0 && f.lost == nil {
		if len(f.header) < frameHeader {
			p = f.begin(p)
		} else {
			p = f.fill(p)
		}
	}
	if f.lost != nil {
		f.lost.write(p)
	}
}

// begin consumes bytes of a header, and returns the rest.
func (f *frames) begin(p []byte) []byte {
	n := min(frameHeader-len(f.header), len(p))
	f.header = append(f.header, p[:n]...)
	if k := min(len(f.header), 4); !knownFrame(f.header[:k]) {
		f.emit(Message{Text: []byte(lostSync)})
		f.lost = &lines{emit: f.emit}
		f.lost.write(f.header)
		return p[n:]
	}
	if len(f.header) == frameHeader {
		f.left = int64(binary.BigEndian.Uint32(f.header[4:]))
		if f.left == 0 {
			f.end()
		}
	}
	return p[n:]
}

// knownFrame reports whether b, of up to four bytes, is the beginning of a frame type of
// LOG-03 or LOG-04.
func knownFrame(b []byte) bool {
	var t [4]byte
	magic := [4]byte{frameMagic >> 24, frameMagic >> 16 & 0xff}
	if n := copy(t[:], b); n < 4 {
		return bytes.Equal(t[:min(n, 3)], magic[:min(n, 3)])
	}
	if !bytes.Equal(t[:3], magic[:3]) {
		return false
	}
	kind, level := t[3]&3, t[3]>>2
	return t[3] == 1 || kind >= 2 && int(level) < len(frameLevels)
}

// fill consumes bytes of a body, and returns the rest.
func (f *frames) fill(p []byte) []byte {
	n := int(min(f.left, int64(len(p))))
	f.body = append(f.body, p[:min(n, maxFrame-len(f.body))]...)
	if f.left -= int64(n); f.left == 0 {
		f.end()
	}
	return p[n:]
}

// end emits the current frame, complete or not.
func (f *frames) end() {
	text := f.body
	if binary.BigEndian.Uint32(f.header[4:]) > maxFrame && len(text) == maxFrame { // LOG-09: the rest is left out
		text = WholeRunes(text)
	}
	m := Message{Text: bytes.TrimSuffix(text, []byte("\n")), Level: frameLevels[f.header[3]>>2]} // LOG-06
	if us := binary.BigEndian.Uint64(f.header[8:]); us <= maxFrameTime {
		m.Time = time.UnixMicro(int64(us))
	}
	f.emit(m)
	f.header, f.left, f.body = f.header[:0], 0, f.body[:0]
	if cap(f.body) > readBytes {
		f.body = nil // do not keep the memory of one long message
	}
}

// maxFrameTime is the end of the year 9999. The format of records has no later time.
const maxFrameTime = 253402300799_999999

// flush emits an unfinished frame if end is true.
func (f *frames) flush(end bool) {
	switch {
	case f.lost != nil:
		f.lost.flush(end)
	case end && len(f.body) > 0:
		f.end()
	}
}
