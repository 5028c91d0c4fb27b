package invoke

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/internal/httpfast"
	"github.com/sandboxd/sandboxd/rapid"
)

// maxErrorDetails is the most bytes of an error in an InvokeComplete: a CHOICE. An error has up
// to 6 MiB, can be six times as long as a JSON string, and SDKs refuse messages of more than
// 16 MiB.
const maxErrorDetails = 1 << 20

// stream writes the response to InvokeWithResponseStream (INV-29 to INV-32), each chunk as it
// arrives. If the client has gone, or reads nothing for patience, stream discards the rest, so
// that the function is not blocked.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, conn *http.ResponseController, req request, res *rapid.Result, patience time.Duration) {
	h := w.Header()
	h.Set("X-Amz-Executed-Version", req.version)
	h.Set("Content-Type", "application/vnd.amazon.eventstream")
	out := &eventWriter{w: w, conn: conn, timeout: patience}
	out.begin()
	switch {
	case res.Stream != nil:
		for chunk := range res.Stream.Chunks() {
			out.write(payloadChunk, chunk)
		}
		res = res.Stream.Result()
	case !res.FunctionError && len(res.Payload) > 0: // RT-74
		out.write(payloadChunk, res.Payload)
	}
	end := completion{}
	if res.FunctionError {
		end.Code, end.Details = cmp.Or(res.Code, res.ErrorType), errorDetails(res.Payload)
	}
	if req.tail {
		select {
		case <-res.Done:
			end.Log = base64.StdEncoding.EncodeToString(res.Tail())
		case <-ctx.Done():
			return
		}
	}
	out.write(invokeComplete, end.json())
}

// completion is the payload of an InvokeComplete (INV-31).
type completion struct {
	Code    string `json:"ErrorCode,omitempty"`
	Details string `json:"ErrorDetails,omitempty"`
	Log     string `json:"LogResult,omitempty"`
}

func (c completion) json() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(c); err != nil { // strings always encode
		return []byte("{}")
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// errorDetails returns an error as a string of limited length.
func errorDetails(payload []byte) string {
	if len(payload) > maxErrorDetails {
		return strings.ToValidUTF8(string(payload[:maxErrorDetails]), "") + "..."
	}
	return string(payload)
}

// eventWriter writes the messages of one response. After the first one that the client does
// not read in time it writes nothing more.
type eventWriter struct {
	w       http.ResponseWriter
	conn    *http.ResponseController
	timeout time.Duration // for each message
	failed  bool
}

// begin sends status and headers.
func (o *eventWriter) begin() {
	_ = o.conn.SetWriteDeadline(time.Now().Add(o.timeout)) // if it fails, Flush fails too
	o.w.WriteHeader(http.StatusOK)
	o.failed = o.conn.Flush() != nil
}

func (o *eventWriter) write(e eventType, payload []byte) {
	if o.failed {
		return
	}
	_ = o.conn.SetWriteDeadline(time.Now().Add(o.timeout))
	o.failed = o.send(e.message(payload)) != nil
}

func (o *eventWriter) send(parts [3][]byte) error {
	if w, ok := o.w.(*httpfast.Writer); ok {
		return w.WriteChunk(parts[:]...)
	}
	for _, p := range parts {
		if _, err := o.w.Write(p); err != nil {
			return err
		}
	}
	return o.conn.Flush()
}
