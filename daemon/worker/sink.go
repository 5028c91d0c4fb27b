package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// newSink makes the sink for the lines of functions, extensions and platform. In
// text they are printed as they are. In JSON every line is one object: a line that
// is none becomes the record of one, as the Telemetry API has it (TL-24).
func newSink(w io.Writer, format telemetry.Format) telemetry.Sink {
	plain := telemetry.NewWriter(w, format)
	if format != telemetry.JSON {
		return plain
	}
	return jsonSink{plain}
}

// jsonSink wraps lines that are no JSON objects.
type jsonSink struct{ next telemetry.Sink }

func (s jsonSink) Lines(ctx context.Context, records []telemetry.Record) {
	for i := range records {
		wrap(&records[i])
	}
	s.next.Lines(ctx, records)
}

// wrap makes an object of a line that is none, and one line of an object that is
// several, as a framed one may be.
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
