package suite

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"time"
)

// StreamPath is where functions are invoked for a streamed answer (INV-28).
const StreamPath = "/2021-11-15/functions/function/response-streaming-invocations"

// Message is one frame of an event stream (INV-30).
type Message struct {
	Headers map[string]string // those of type string
	Payload []byte
	After   time.Duration // since the request, when the whole frame had come
}

// Kind is the message's event type.
func (m Message) Kind() string { return m.Headers[":event-type"] }

// Stream is an answer to a streaming invocation.
type Stream struct {
	Answer
	Messages []Message
}

// Chunks is the payload of all chunks together.
func (s *Stream) Chunks() string {
	var b strings.Builder
	for _, m := range s.Messages {
		if m.Kind() == "PayloadChunk" {
			b.Write(m.Payload)
		}
	}
	return b.String()
}

// InvokeStream invokes the function for a streamed answer and takes it in. Frames are
// read only of an answer with status 200; a frame that is wrong is fatal, and so is a
// stream of more than 64 MiB, which ends within a frame.
func (t *T) InvokeStream(payload string, header ...string) *Stream {
	ctx, cancel := t.limited()
	defer cancel()
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.instance().URL()+StreamPath, strings.NewReader(payload))
	if err != nil {
		t.Fatalf("stream: %v", err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("stream: %v", err)
	}
	defer resp.Body.Close()
	s := &Stream{Answer: Answer{Status: resp.StatusCode, Header: resp.Header}}
	if resp.StatusCode != http.StatusOK {
		s.Body, _ = io.ReadAll(io.LimitReader(resp.Body, mostBytes))
		s.Took = time.Since(began)
		return s
	}
	for body := io.LimitReader(resp.Body, mostBytes); ; {
		m, err := ReadMessage(body)
		if err == io.EOF {
			s.Took = time.Since(began)
			return s
		}
		if err != nil {
			t.Fatalf("stream: frame %d: %v", len(s.Messages)+1, err)
		}
		m.After = time.Since(began)
		s.Messages = append(s.Messages, m)
	}
}

const (
	preludeSize  = 12
	largestFrame = 16 << 20
	stringValue  = 7
)

// ReadMessage reads one frame and checks its lengths and sums. At the end of the stream
// it returns io.EOF as it is.
func ReadMessage(r io.Reader) (Message, error) {
	var prelude [preludeSize]byte
	if _, err := io.ReadFull(r, prelude[:]); err != nil {
		return Message{}, err
	}
	total, heads := binary.BigEndian.Uint32(prelude[:]), binary.BigEndian.Uint32(prelude[4:])
	if sum := crc32.ChecksumIEEE(prelude[:8]); sum != binary.BigEndian.Uint32(prelude[8:]) {
		return Message{}, fmt.Errorf("event stream: the CRC of the prelude is %08x, want %x", sum, prelude[8:])
	}
	if total < preludeSize+4 || total > largestFrame || heads > total-preludeSize-4 {
		return Message{}, fmt.Errorf("event stream: a frame of %d bytes with %d bytes of headers", total, heads)
	}
	rest := make([]byte, total-preludeSize)
	if _, err := io.ReadFull(r, rest); err != nil {
		return Message{}, fmt.Errorf("event stream: a frame is cut short: %w", err)
	}
	body, sum := rest[:len(rest)-4], binary.BigEndian.Uint32(rest[len(rest)-4:])
	if got := crc32.Update(crc32.ChecksumIEEE(prelude[:]), crc32.IEEETable, body); got != sum {
		return Message{}, fmt.Errorf("event stream: the CRC of a frame is %08x, want %08x", got, sum)
	}
	headers, err := readHeaders(body[:heads])
	return Message{Headers: headers, Payload: body[heads:]}, err
}

func readHeaders(b []byte) (map[string]string, error) {
	headers := make(map[string]string)
	for len(b) > 0 {
		n := int(b[0])
		if len(b) < 1+n+3 || b[1+n] != stringValue {
			return nil, fmt.Errorf("event stream: no header of type string at % x", b)
		}
		name, rest := string(b[1:1+n]), b[1+n+1:]
		size := int(binary.BigEndian.Uint16(rest))
		if len(rest) < 2+size {
			return nil, fmt.Errorf("event stream: the value of header %s is cut short", name)
		}
		headers[name] = string(rest[2 : 2+size])
		b = rest[2+size:]
	}
	return headers, nil
}
