package invoke

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
)

// message is a message as the SDK decodes it.
type message struct{ event, contentType, payload string }

// decode reads messages with the SDK's decoder, which checks both sums of each, until
// the end of r.
func decode(r io.Reader, each func(message)) error {
	for d := eventstream.NewDecoder(); ; {
		m, err := d.Decode(r, nil)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		get := func(name string) string {
			v, _ := m.Headers.Get(name).(eventstream.StringValue)
			return string(v)
		}
		if get(":message-type") != "event" || len(m.Headers) != 3 {
			return errors.New("the headers are wrong")
		}
		each(message{get(":event-type"), get(":content-type"), string(m.Payload)})
	}
}

// INV-30, INV-31: what an SDK sees of a message.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("text"))
	f.Add(bytes.Repeat([]byte{0, 255}, 100_000))
	f.Fuzz(func(t *testing.T, payload []byte) {
		var b bytes.Buffer
		for _, parts := range [][3][]byte{payloadChunk.message(payload), invokeComplete.message([]byte("{}"))} {
			for _, part := range parts {
				b.Write(part)
			}
		}
		whole := bytes.Clone(b.Bytes())
		var got []message
		if err := decode(&b, func(m message) { got = append(got, m) }); err != nil {
			t.Fatal(err)
		}
		want := []message{{"PayloadChunk", "application/octet-stream", string(payload)}, {"InvokeComplete", "application/json", "{}"}}
		if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("%q, want %q", got, want)
		}
		whole[len(whole)-1] ^= 1
		if decode(bytes.NewReader(whole), func(message) {}) == nil {
			t.Error("the decoder does not check the sum: the test shows nothing")
		}
	})
}

// The limit of an error's text counts in bytes and leaves no half letter.
func TestErrorDetails(t *testing.T) {
	for _, text := range []string{"", `{"errorType":"T"}`, strings.Repeat("x", maxErrorDetails)} {
		if got := errorDetails([]byte(text)); got != text {
			t.Errorf("%d bytes became %d", len(text), len(got))
		}
	}
	if got := errorDetails([]byte("x" + strings.Repeat("é", maxErrorDetails))); got != "x"+strings.Repeat("é", maxErrorDetails/2-1)+"..." {
		t.Errorf("%d bytes: …%q", len(got), got[len(got)-10:])
	}
	for _, c := range []completion{{}, {Code: "a<b", Details: "\x00\xff"}} {
		if b := c.json(); !bytes.HasPrefix(b, []byte("{")) || bytes.Contains(b, []byte(`\u003c`)) || bytes.HasSuffix(b, []byte("\n")) {
			t.Errorf("%q", b)
		}
	}
}
