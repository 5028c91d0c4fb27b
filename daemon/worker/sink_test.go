package worker

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

func TestSink(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	records := []telemetry.Record{
		{Time: at, Source: telemetry.FromFunction, Text: "plain \"text\""},
		{Time: at, Source: telemetry.FromFunction, Text: `{"level":"INFO"}`},
		{Time: at, Source: telemetry.FromExtension, Text: `{"broken`},
		{Time: at, Source: telemetry.FromFunction, Level: telemetry.LevelError, Text: "framed\ntext"},
		{Time: at, Source: telemetry.FromFunction, Level: telemetry.LevelInfo, Text: "{\n  \"a\": \"b c\"\n}"},
	}
	var text, asJSON bytes.Buffer
	newSink(&text, telemetry.Text).Lines(t.Context(), slices.Clone(records))
	newSink(&asJSON, telemetry.JSON).Lines(t.Context(), slices.Clone(records))
	if want := "plain \"text\"\n{\"level\":\"INFO\"}\n{\"broken\nframed\ntext\n{\n  \"a\": \"b c\"\n}\n"; text.String() != want {
		t.Errorf("text: %q, want the lines as they are", text.String())
	}
	want := `{"time":"2026-01-02T03:04:05.006Z","type":"function","record":"plain \"text\""}
{"level":"INFO"}
{"time":"2026-01-02T03:04:05.006Z","type":"extension","record":"{\"broken"}
{"time":"2026-01-02T03:04:05.006Z","type":"function","level":"ERROR","record":"framed\ntext"}
{"a":"b c"}
`
	if asJSON.String() != want {
		t.Errorf("JSON: %s\nwant %s", asJSON.String(), want)
	}
}
