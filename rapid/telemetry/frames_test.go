package telemetry

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// frame makes one frame of section 7.1.
func frame(kind uint32, us uint64, text string) []byte {
	b := binary.BigEndian.AppendUint32(nil, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = binary.BigEndian.AppendUint64(b, us)
	return append(b, text...)
}

// messages collects what a cutter emits, as text.
type messages []string

func (m *messages) emit(g Message) {
	at := ""
	if !g.Time.IsZero() {
		at = fmt.Sprint(g.Time.UnixMicro())
	}
	*m = append(*m, fmt.Sprintf("%s|%s|%s", at, g.Level, g.Text))
}

// LOG-02, LOG-03, LOG-04, LOG-06, LOG-07: every kind of frame.
func TestFrameKinds(t *testing.T) {
	levels := []string{"", "TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"}
	for _, base := range []uint32{0xA55A0003, 0xA55A0002} {
		for i, level := range levels {
			var got messages
			f := frames{emit: got.emit}
			f.write(frame(base|uint32(i)<<2, 1700000000123456, "one\ntwo\n\n"))
			if want := "1700000000123456|" + level + "|one\ntwo\n"; len(got) != 1 || got[0] != want {
				t.Errorf("%x: %q, want %q", base|uint32(i)<<2, got, want)
			}
		}
	}
	var got messages
	f := frames{emit: got.emit}
	f.write(frame(0xA55A0001, 1, "old"))
	f.write(frame(0xA55A0003, 2, ""))
	f.write(frame(0xA55A0003, 1<<63, "no such time"))
	if want := (messages{"1||old", "2||", "||no such time"}); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// ACC-19, LOG-05: frames split at every byte boundary still give one event each.
func TestFramesInPieces(t *testing.T) {
	var stream []byte
	want := messages{}
	for i, text := range []string{"first", "", "a line\nand another\n", `{"json":true}`, strings.Repeat("x", 300)} {
		stream = append(stream, frame(0xA55A0003|uint32(i)<<2, uint64(i+1), text)...)
		want = append(want, fmt.Sprintf("%d|%s|%s", i+1, frameLevels[i], strings.TrimSuffix(text, "\n")))
	}
	for at := range len(stream) + 1 {
		var got messages
		f := frames{emit: got.emit}
		f.write(stream[:at])
		f.write(stream[at:])
		if !slices.Equal(got, want) {
			t.Fatalf("split at %d: %q, want %q", at, got, want)
		}
	}
	var got messages
	f := frames{emit: got.emit}
	for i := range stream {
		f.write(stream[i : i+1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("byte by byte: %q, want %q", got, want)
	}
}

// LOG-04: what is no frame is read line by line from there on, and said once.
func TestLostSync(t *testing.T) {
	for _, garbage := range []string{"plain text\nmore\nrest", "\xa5\x5a\x00\x1f1234\n", "\xa5\n", "\xa5\x5a\x00\x00....\n", "\xa5\x5a\x00\x05....\n"} {
		stream := append(frame(0xA55A0003, 1, "good"), garbage...)
		want := messages{"1||good", "||" + lostSync}
		for line := range strings.Lines(garbage) {
			want = append(want, "||"+strings.TrimSuffix(line, "\n"))
		}
		for at := range len(stream) + 1 {
			var got messages
			f := frames{emit: got.emit}
			f.write(stream[:at])
			f.write(stream[at:])
			f.flush(false)
			if !slices.Equal(got, want) {
				t.Fatalf("%q split at %d: %q, want %q", garbage, at, got, want)
			}
		}
	}
}

// LOG-09: more than 1 MiB is consumed and left out; the next frame is whole.
func TestLongFrame(t *testing.T) {
	var sizes []int
	f := frames{emit: func(m Message) { sizes = append(sizes, len(m.Text)) }}
	long := frame(0xA55A0003, 1, strings.Repeat("x", maxFrame+1000))
	for chunk := range slices.Chunk(long, readBytes) {
		f.write(chunk)
	}
	f.write(frame(0xA55A0003, 1, "next"))
	if want := []int{maxFrame, 4}; !slices.Equal(sizes, want) {
		t.Errorf("sizes %v, want %v", sizes, want)
	}
	if cap(f.body) > readBytes {
		t.Errorf("%d bytes are kept", cap(f.body))
	}
}

// An announced length costs nothing, and what has come of a frame is not lost at the
// end (LOG-12), but is not cut before.
func TestUnfinishedFrame(t *testing.T) {
	var got messages
	f := frames{emit: got.emit}
	b := frame(0xA55A0003, 7, "")
	binary.BigEndian.PutUint32(b[4:], 1<<32-1)
	f.write(b)
	f.write([]byte("last words"))
	f.flush(false)
	if len(got) != 0 || cap(f.body) > 1000 {
		t.Errorf("%q, capacity %d", got, cap(f.body))
	}
	f.flush(true)
	if want := (messages{"7||last words"}); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// LOG-01, LOG-12: the third descriptor is read as the others are, in step with Drain.
func TestEgressReadsFrames(t *testing.T) {
	for _, kind := range []Descriptors{Pipes, Sockets} {
		var l lineLog
		e, err := Open(kind, true, l.emit)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 1000 {
			b := frame(0xA55A000F, 1, fmt.Sprint(i))
			_, _ = e.Frames().Write(b[:16]) // LOG-05: header and body apart
			e.Drain()
			_, _ = e.Frames().Write(b[16:])
			e.Drain()
			if got := l.take(); len(got) != i+1 || got[i] != fmt.Sprint(i) {
				t.Fatalf("%s: after frame %d: %d messages", kind, i, len(got))
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// FuzzFrames: any stream, in any two pieces, gives the same messages, within bounds.
func FuzzFrames(f *testing.F) {
	f.Add(frame(0xA55A0003, 1, "text\n"), 3)
	f.Add(append(frame(0xA55A0016, 1, "{}"), "garbage\n"...), 20)
	f.Add([]byte("\xa5\x5a\x00\x01\xff\xff\xff\xff........body"), 17)
	f.Fuzz(func(t *testing.T, stream []byte, at int) {
		read := func(pieces ...[]byte) (got messages) {
			bytesOut := 0
			fr := frames{emit: func(m Message) {
				bytesOut += len(m.Text)
				if !m.Time.IsZero() && m.Time.After(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)) {
					t.Errorf("time %v", m.Time)
				}
				got.emit(m)
			}}
			for _, p := range pieces {
				fr.write(bytes.Clone(p))
			}
			fr.flush(true)
			if bytesOut > len(stream)+len(lostSync) {
				t.Errorf("%d bytes out of %d", bytesOut, len(stream))
			}
			return got
		}
		at = min(max(at, 0), len(stream))
		if one, two := read(stream), read(stream[:at], stream[at:]); !slices.Equal(one, two) {
			t.Errorf("in one piece %q, split at %d %q", one, at, two)
		}
	})
}
