package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// newSink returns the sink for log lines of functions, extensions and the platform. In text
// format it prints lines as they are. In JSON format every printed line is one object: a
// line that is not an object becomes the field "record" of one, as in the Telemetry API
// (TL-24).
func newSink(w io.Writer, format telemetry.Format) telemetry.Sink {
	plain := telemetry.NewWriter(w, format)
	if format != telemetry.JSON {
		return plain
	}
	return jsonSink{plain}
}

// jsonSink passes records to next, and wraps lines that are not JSON objects.
type jsonSink struct{ next telemetry.Sink }

func (s jsonSink) Lines(ctx context.Context, records []telemetry.Record) {
	for i := range records {
		wrap(&records[i])
	}
	s.next.Lines(ctx, records)
}

// wrap makes the text of r one JSON object on one line. An object in a framed message may
// have several lines.
func wrap(r *telemetry.Record) {
	if text := strings.TrimSpace(r.Text); r.Platform != nil || strings.HasPrefix(text, "{") && json.Valid([]byte(text)) {
		if strings.Contains(r.Text, "\n") {
			var line bytes.Buffer
			_ = json.Compact(&line, []byte(text)) // it is valid
			r.Text = line.String()
		}
		return
	}
	event := struct {
		Time   telemetry.Timestamp `json:"time"`
		Type   telemetry.Source    `json:"type"`
		Level  telemetry.Level     `json:"level,omitempty"` // of a framed message
		Record string              `json:"record"`
	}{telemetry.Timestamp(r.Time), r.Source, r.Level, r.Text}
	if b, err := json.Marshal(event); err == nil {
		r.Text = string(b)
	}
}
