package worker

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/daemon/worker/logs"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// Every line of a log begins with a time, whatever a function writes.
func TestLogSink(t *testing.T) {
	folder := t.TempDir()
	l := logs.New(logs.Config{Segments: 4, PerFunction: 4, Bytes: 1 << 20, Age: time.Hour,
		Open: func(_ context.Context, number int, _ bool) (*os.File, error) {
			return os.OpenFile(filepath.Join(folder, strconv.Itoa(number)), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		}})
	defer l.Close()
	at := time.Date(2026, 12, 1, 3, 0, 0, 0, time.FixedZone("east", 3600))
	long := strings.Repeat("ä", logs.MaxLine)
	f := l.Hold("f")
	defer f.Release()
	(&logSink{log: f}).Lines(t.Context(), []telemetry.Record{
		{Time: at, Source: telemetry.FromFunction, Text: "plain"},
		{Time: at, Source: telemetry.FromFunction, Text: "two\nlines"},
		{Time: at, Source: telemetry.FromFunction, Text: ""},
		{Time: time.Unix(math.MaxInt32*1000, 0), Source: telemetry.FromFunction, Text: "far away"},
		{Time: at, Source: telemetry.FromFunction, Text: long},
	})
	(&logSink{log: f, format: telemetry.JSON}).Lines(t.Context(), []telemetry.Record{{Time: at, Source: telemetry.FromFunction, Text: "plain"}})
	var got []string
	err := l.Read(t.Context(), "f", logs.Position{}, false, func(line logs.Line) error {
		got = append(got, string(line.Text))
		if !line.Time.Equal(at) && string(line.Text) != "far away" {
			t.Errorf("%v: %.20q", line.Time, line.Text)
		}
		return nil
	}, nil)
	if err != nil || len(got) < 8 || !slices.Equal(got[:5], []string{"plain", "two", "lines", "", "far away"}) {
		t.Fatalf("%.20q, %v", got, err)
	}
	if strings.Join(got[5:len(got)-1], "") != long {
		t.Error("a long line is not whole")
	}
	if want := `{"time":"2026-12-01T02:00:00.000Z","type":"function","record":"plain"}`; got[len(got)-1] != want {
		t.Errorf("%s, want %s", got[len(got)-1], want)
	}
}
