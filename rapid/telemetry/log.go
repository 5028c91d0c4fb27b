package telemetry

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// TailBytes is the size of an invocation's tail (INV-03).
const TailBytes = 4096

const (
	// queueBytes limits what waits for a slow sink, for each sandbox: the longest frame and
	// the longest line.
	queueBytes = maxFrame + maxLine
	// platformReserve is how much platform records may exceed queueBytes, so that START and
	// REPORT are not dropped because of too much output between them.
	platformReserve = 64 << 10
	// gather is how long a record may wait for others, so that the lines of an invocation are
	// written together, and not while its event is being delivered.
	gather = 2 * time.Millisecond
	// keepRecords is the capacity of an empty queue; a larger one is freed.
	keepRecords = 256
	// recordOverhead is the memory of a queued record besides its text, in bytes.
	recordOverhead = 160
)

const slowReader = "Some logs were dropped because the downstream consumer is slower than the logs production rate" // TL-19

// Log is the log of one sandbox. It puts the output of processes and the records of the
// platform in order, keeps the tail of the current invocation, and passes records to a sink
// through a bounded queue, so that no caller waits for the sink. Its methods are safe for
// concurrent use.
type Log struct {
	cfg  LogConfig
	wake chan struct{} // capacity 1: the queue is not empty
	full chan struct{} // capacity 1: the queue is half full
	quit chan struct{} // closed by Close: do not wait for more records
	idle chan struct{} // closed when pump has returned

	wanted context.Context // of the sink's calls; ends when Close gives up
	giveUp context.CancelFunc

	mu      sync.Mutex
	id      string // current invocation
	read    bool   // its tail may be read
	tail    tail
	queue   []Record
	size    int
	dropped LogsDropped
	closed  bool
}

// LogConfig configures a log. It must not be changed after NewLog.
type LogConfig struct {
	Sink   Sink   // receives records; nil discards them
	Format Format // of platform records in the tail
	System Level  // lowest level of platform records in tail and sink, if Format is JSON; "" means all (LOG-41)
	Hub    *Hub   // receives every record; may be nil
}

// NewLog returns a log. The caller must Close it, and still owns the hub.
func NewLog(c LogConfig) *Log {
	l := &Log{cfg: c, wake: make(chan struct{}, 1), full: make(chan struct{}, 1), quit: make(chan struct{}), idle: make(chan struct{})}
	l.wanted, l.giveUp = context.WithCancel(context.Background())
	l.tail.whole = c.Format == JSON
	go l.pump()
	return l
}

// Output adds a message of a process.
func (l *Log) Output(source Source, name string, m Message) {
	if m.Time.IsZero() {
		m.Time = time.Now()
	}
	l.mu.Lock()
	l.add(Record{Time: m.Time, Source: source, Name: name, Level: m.Level, Text: string(m.Text)})
	l.mu.Unlock()
}

// Platform adds a record of the platform.
func (l *Log) Platform(p Platform) {
	l.mu.Lock()
	l.add(Record{Time: time.Now(), Source: FromPlatform, Platform: p})
	l.mu.Unlock()
}

// Begin starts a new tail: later records belong to the invocation id.
func (l *Log) Begin(id string) { l.begin(id, true) }

// BeginUnread is like Begin, for an invocation whose tail is not needed: it stays empty.
func (l *Log) BeginUnread(id string) { l.begin(id, false) }

func (l *Log) begin(id string, read bool) {
	l.mu.Lock()
	l.id, l.read = id, read
	l.tail.reset()
	l.mu.Unlock()
}

// End returns the tail since Begin. Later records belong to no invocation.
func (l *Log) End() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = ""
	return l.tail.bytes()
}

// Close passes the queued records to the sink and ends the log's goroutine. If ctx ends
// first, Close drops the remaining records and returns an error; the goroutine then ends when
// the sink's call returns.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.quit)
	}
	l.mu.Unlock()
	select {
	case <-l.idle:
		return nil
	case <-ctx.Done():
		l.giveUp()
		return fmt.Errorf("write the last log lines: the reader of the log does not read: %w", ctx.Err())
	}
}

// add adds r to tail, queue and hub. The caller holds mu.
func (l *Log) add(r Record) {
	r.RequestID = l.id
	l.cfg.Hub.Add(&r)
	if l.cfg.Format == JSON && r.Platform != nil && !l.cfg.System.shows(r.Platform) {
		return
	}
	if l.id != "" && l.read {
		l.tail.add(&r, l.cfg.Format)
	}
	if l.cfg.Sink == nil || l.closed {
		return
	}
	room := queueBytes
	if r.Platform != nil {
		room += platformReserve
	}
	if l.size+len(r.Text)+recordOverhead > room {
		l.dropped.Records++
		l.dropped.Bytes += int64(len(r.Text))
		return
	}
	if l.dropped.Records > 0 {
		d := l.dropped
		d.Reason = slowReader
		l.dropped = LogsDropped{}
		l.push(Record{Time: r.Time, Source: FromPlatform, Platform: &d})
	}
	l.push(r)
	signal(l.wake)
	if l.size > queueBytes/2 {
		signal(l.full)
	}
}

func (l *Log) push(r Record) {
	l.queue = append(l.queue, r)
	l.size += len(r.Text) + recordOverhead
}

// signal sends to a channel of capacity 1 unless that is full.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pump passes records to the sink until the log is closed and the queue is empty.
func (l *Log) pump() {
	defer close(l.idle)
	defer l.giveUp()
	timer := time.NewTimer(gather)
	defer timer.Stop()
	var batch []Record
	for {
		select {
		case <-l.wake:
			timer.Reset(gather)
			select {
			case <-timer.C:
			case <-l.full:
			case <-l.quit:
			}
		case <-l.quit:
		}
		var closed bool
		if batch, closed = l.take(batch[:0]); len(batch) > 0 {
			l.cfg.Sink.Lines(l.wanted, batch)
			clear(batch)
			if cap(batch) > keepRecords {
				batch = nil // do not keep the memory of one flood of output
			}
		} else if closed {
			return
		}
	}
}

// take replaces the queue with empty, and returns it. closed reports whether the log is
// closed.
func (l *Log) take(empty []Record) (batch []Record, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch, l.queue, l.size = l.queue, empty, 0
	for _, c := range []<-chan struct{}{l.wake, l.full} {
		select {
		case <-c: // it is for what is in the batch
		default:
		}
	}
	if len(batch) == 0 && l.dropped.Records > 0 {
		d := l.dropped
		d.Reason = slowReader
		l.dropped = LogsDropped{}
		batch = append(batch, Record{Time: time.Now(), Source: FromPlatform, Platform: &d})
	}
	return batch, l.closed
}

// tail keeps the last TailBytes bytes that are added. It cuts text at bytes, not at
// characters, as Lambda does (LOG-44).
type tail struct {
	buf   []byte
	whole bool // keep whole records only (LOG-44)
}

func (t *tail) reset() { t.buf = t.buf[:0] }

func (t *tail) add(r *Record, f Format) {
	t.buf = r.Append(t.buf, f)
	if len(t.buf) > 4*TailBytes {
		// Keep one byte more than bytes returns, so that bytes detects the cut.
		n := copy(t.buf, t.buf[len(t.buf)-TailBytes-1:])
		t.buf = t.buf[:n]
		if cap(t.buf) > 16*TailBytes {
			t.buf = append(make([]byte, 0, 4*TailBytes), t.buf...)
		}
	}
}

func (t *tail) bytes() []byte {
	b := t.buf
	if cut := len(b) - TailBytes; cut > 0 {
		if t.whole {
			for cut < len(b) && b[cut-1] != '\n' {
				cut++
			}
		}
		b = b[cut:]
	}
	return append([]byte(nil), b...)
}
