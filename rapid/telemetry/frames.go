package telemetry

import (
	"bytes"
	"encoding/binary"
	"time"
)

// Level is the level that a client gave a framed message (LOG-03), "" for none and
// for plain lines.
type Level string

// The levels of LOG-03, least first; LevelWarn and those before it are also the
// choices of the system level (LOG-41).
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
	Text  []byte    // without its newline; not to be kept
	Time  time.Time // as the frame says (LOG-07); zero for now
	Level Level
}

const (
	frameHeader = 16
	frameMagic  = 0xA55A0000
	maxFrame    = 1 << 20 // LOG-09
	lostSync    = "sandboxd: the log descriptor carries something that is no frame; from here on it is read line by line"
)

// frames takes the messages out of the stream of section 7.1, whatever its pieces
// are. What is not a frame ends that for good: the rest counts as lines (LOG-04).
type frames struct {
	emit   func(Message)
	header []byte // of the frame that is being read, up to frameHeader bytes
	left   int64  // bytes of its body that are to come, once the header is complete
	body   []byte // at most maxFrame of it
	lost   *lines // what reads instead, once sync is lost
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

// begin takes bytes of a header, and returns the rest.
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

// knownFrame reports whether b, which is up to four bytes, begins a type of LOG-03 or
// LOG-04.
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

// fill takes bytes of a body, and returns the rest.
func (f *frames) fill(p []byte) []byte {
	n := int(min(f.left, int64(len(p))))
	f.body = append(f.body, p[:min(n, maxFrame-len(f.body))]...)
	if f.left -= int64(n); f.left == 0 {
		f.end()
	}
	return p[n:]
}

// end emits the frame that is complete, or what there is of it.
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
		f.body = nil // one long message must not keep its memory
	}
}

// maxFrameTime is the end of the year 9999: what is later has no place in a record.
const maxFrameTime = 253402300799_999999

// flush emits, at the end, what there is of a body that will not be completed.
func (f *frames) flush(end bool) {
	switch {
	case f.lost != nil:
		f.lost.flush(end)
	case end && len(f.body) > 0:
		f.end()
	}
}
