package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/daemon/worker/logs"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// maxLogReaders is how many readers of logs there may be at once.
const maxLogReaders = 32

// openLogs opens the logs of functions. The supervisor opens their files.
func (w *worker) openLogs() *logs.Logs {
	c := w.config.Logs
	return logs.New(logs.Config{
		Open: w.client.Segment, Existing: c.Existing,
		Segments: c.Segments, PerFunction: c.PerFunction, Bytes: message.LogSegmentBytes, Age: c.Age,
		OnError: func(err error) { w.log.WithError(err).Error("the logs of functions") },
	})
}

// logSink writes records into the log of a function. It is for one sandbox, and its calls come
// one after the other.
type logSink struct {
	log    *logs.Function
	format telemetry.Format

	text, lines []byte // buffers
}

// Bytes of lines that are written at once, and of a buffer that is kept.
const (
	sinkBytes = 32 << 10
	sinkKeeps = 64 << 10
)

// Lines implements telemetry.Sink.
func (s *logSink) Lines(ctx context.Context, records []telemetry.Record) {
	for i := range records {
		if s.format == telemetry.JSON {
			wrap(&records[i])
		}
		s.text = records[i].Append(s.text[:0], s.format)
		s.lines = appendLines(s.lines, records[i].Time, s.text)
		if len(s.lines) >= sinkBytes {
			s.flush(ctx)
		}
	}
	s.flush(ctx)
	if cap(s.text)+cap(s.lines) > sinkKeeps {
		s.text, s.lines = nil, nil
	}
}

func (s *logSink) flush(ctx context.Context) {
	if len(s.lines) > 0 {
		s.log.Write(ctx, s.lines)
	}
	s.lines = s.lines[:0]
}

// appendLines appends text, which ends with a newline, as lines that begin with the time at.
// Long lines are cut between characters.
func appendLines(b []byte, at time.Time, text []byte) []byte {
	at = at.UTC()
	if y := at.Year(); y < 1 || y > 9999 { // functions may say so
		at = time.Now().UTC()
	}
	const most = logs.MaxLine - len(logs.TimeForm) - len(" \n")
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte{'\n'})
		if len(line) > most {
			line = telemetry.WholeRunes(line[:most])
			rest = text[len(line):]
		}
		b = at.AppendFormat(b, logs.TimeForm)
		b = append(append(append(b, ' '), line...), '\n')
		text = rest
	}
	return b
}

// readLogs answers a request for the lines of a function.
func (w *worker) readLogs(rw http.ResponseWriter, r *http.Request) {
	values := r.URL.Query()
	q, err := admin.ParseLogQuery(values)
	var from logs.Position
	if err == nil {
		from, err = logs.ParsePosition(q.From)
	}
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case w.readers <- struct{}{}:
		defer func() { <-w.readers }()
	default:
		http.Error(rw, "too many readers of logs", http.StatusServiceUnavailable)
		return
	}
	if !w.logs.Has(r.Context(), q.Function) && values.Get("known") == "" {
		http.Error(rw, "no lines", http.StatusNotFound)
		return
	}
	c := http.NewResponseController(rw)
	_ = c.SetReadDeadline(time.Time{}) // it may last; what fails here fails below
	flush := func() error {
		_ = c.SetWriteDeadline(time.Now().Add(askTime))
		return c.Flush()
	}
	rw.WriteHeader(http.StatusOK)
	if flush() != nil {
		return
	}
	out := json.NewEncoder(rw)
	_ = w.logs.Read(r.Context(), q.Function, from, q.Follow, func(l logs.Line) error {
		if l.Time.Before(q.Since) {
			return nil
		}
		_ = c.SetWriteDeadline(time.Now().Add(askTime))
		return out.Encode(admin.LogLine{Time: l.Time, Text: string(l.Text), Next: l.Next.String(), Lost: l.Lost})
	}, flush) // the reader asks again for what it has not got
}

// boundLogFiles limits the size of the files that this process can write if it is compromised:
// without that, a segment of the logs could fill the disk. The limit is for all files, and so
// cannot be set where standard output or error is a file of the operator's.
func boundLogFiles() error {
	for _, fd := range []int{unix.Stdout, unix.Stderr} {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			return nil
		}
	}
	return os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: message.LogSegmentBytes, Max: message.LogSegmentBytes}))
}
