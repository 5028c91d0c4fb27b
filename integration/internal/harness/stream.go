package harness

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// Streamed is a response stream as the AWS SDK's decoder reads it, which checks the
// CRCs of every message.
type Streamed struct {
	Answer
	Chunks int
	First  time.Duration // from the request to the first chunk
	Length int64
	Text   string // the first 64 KiB of the payload
	End    struct{ ErrorCode, ErrorDetails, LogResult string }
}

// OpenStream begins an invocation by InvokeWithResponseStream.
func (d *Daemon) OpenStream(payload any, header ...string) *http.Response {
	d.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	d.T.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.Addr+"/2021-11-15/functions/function/response-streaming-invocations",
		strings.NewReader(script.Encode(payload)))
	if err != nil {
		d.T.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.T.Fatal(err)
	}
	d.T.Cleanup(func() { resp.Body.Close() })
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || kind != "application/vnd.amazon.eventstream" {
		text, _ := io.ReadAll(resp.Body)
		d.T.Fatalf("status %d, content type %q: %s (INV-29)", resp.StatusCode, kind, text)
	}
	return resp
}

// StreamOf reads the whole stream that a payload is answered with.
func (d *Daemon) StreamOf(payload any, header ...string) *Streamed {
	d.T.Helper()
	begin := time.Now()
	resp := d.OpenStream(payload, header...)
	s := &Streamed{Answer: Answer{Status: resp.StatusCode, Header: resp.Header}}
	complete := 0
	decoder := eventstream.NewDecoder()
	for buffer := make([]byte, 64<<10); ; {
		m, err := decoder.Decode(resp.Body, buffer[:0])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			d.T.Fatalf("after %d chunks: %v (INV-30)", s.Chunks, err)
		}
		if complete > 0 {
			d.T.Fatalf("a message after InvokeComplete (INV-32)")
		}
		switch kind := m.Headers.Get(":event-type").String(); kind {
		case "PayloadChunk":
			if s.Chunks == 0 {
				s.First = time.Since(begin)
			}
			s.Chunks++
			s.Length += int64(len(m.Payload))
			if len(s.Text) < 64<<10 {
				s.Text += string(m.Payload)
			}
		case "InvokeComplete":
			complete++
			if err := json.Unmarshal(m.Payload, &s.End); err != nil {
				d.T.Fatalf("InvokeComplete %q: %v", m.Payload, err)
			}
		default:
			d.T.Fatalf("event type %q", kind)
		}
	}
	if complete != 1 {
		d.T.Fatalf("%d InvokeComplete (INV-32)", complete)
	}
	s.Took = time.Since(begin)
	return s
}

// Streaming is a step that answers the current invocation with a stream of parts, with a
// pause before each but the first.
func Streaming(pause time.Duration, parts ...string) script.Step {
	s := Respond("")
	s.Headers = map[string]string{"Lambda-Runtime-Function-Response-Mode": "streaming"}
	for i, part := range parts {
		chunk := script.Chunk{Data: part}
		if i > 0 {
			chunk.AfterMS = pause.Milliseconds()
		}
		s.Chunks = append(s.Chunks, chunk)
	}
	return s
}

// Answering is an event whose steps answer it.
func Answering(steps ...script.Step) script.Event {
	return script.Event{Report: true, Steps: steps, Answered: true}
}
