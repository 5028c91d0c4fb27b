package telemetry

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type lineLog struct {
	mu  sync.Mutex
	got []string
}

func (l *lineLog) emit(m Message) {
	l.mu.Lock()
	l.got = append(l.got, string(m.Text))
	l.mu.Unlock()
}

func (l *lineLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.got)
}

func open(t *testing.T, kind Descriptors) (*Egress, *lineLog) {
	t.Helper()
	var l lineLog
	e, err := Open(kind, false, l.emit)
	if err != nil {
		t.Fatal(err)
	}
	return e, &l
}

// LOG-10, LOG-12, TL-26: what was written before Drain has been emitted after it.
func TestDrainSeesWhatWasWritten(t *testing.T) {
	for _, kind := range []Descriptors{Pipes, Sockets} {
		t.Run(string(kind), func(t *testing.T) {
			e, l := open(t, kind)
			defer func() { _ = e.Close() }()
			for i := range 2000 { // each time against the reading goroutine
				_, _ = fmt.Fprintf(e.Stdout(), "%d\r\n", i)
				e.Drain()
				if got := l.take(); len(got) != i+1 || got[i] != fmt.Sprintf("%d\r", i) {
					t.Fatalf("after line %d: %d lines, last %q", i, len(got), got[len(got)-1])
				}
			}
			_, _ = e.Stderr().WriteString("no newline")
			e.Drain()
			if n := len(l.take()); n != 2000 {
				t.Errorf("Drain emitted an unfinished line")
			}
			e.Flush()
			if got := l.take(); got[len(got)-1] != "no newline" {
				t.Errorf("Flush: %q", got[len(got)-1])
			}
		})
	}
}

// A process that writes without end is read without end, and Drain comes back.
func TestFloodNeitherBlocksNorHolds(t *testing.T) {
	e, l := open(t, Pipes)
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		line := []byte(strings.Repeat("x", 999) + "\n")
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = e.Stdout().Write(line)
			}
		}
	})
	for range 100 {
		e.Drain()
	}
	for len(l.take()) < 10000 {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	writer.Wait()
	_ = e.Close()
}

// Floods, however many, are read by turns: they leave processors to the rest of the daemon.
func TestFloodsTakeTurns(t *testing.T) {
	var in, most atomic.Int64
	var floods []*Egress
	var writers sync.WaitGroup
	stop := make(chan struct{})
	for range cap(turns) + 6 {
		e, err := Open(Pipes, false, func(Message) {
			most.Store(max(most.Load(), in.Add(1)))
			runtime.Gosched()
			in.Add(-1)
		})
		if err != nil {
			t.Fatal(err)
		}
		floods = append(floods, e)
		writers.Go(func() {
			for newlines := bytes.Repeat([]byte("\n"), 1<<10); ; {
				select {
				case <-stop:
					return
				default:
					_, _ = e.Stdout().Write(newlines)
				}
			}
		})
	}
	e, l := open(t, Pipes)
	_, _ = e.Stdout().WriteString("a line\n")
	for len(l.take()) == 0 { // another's output has its turn too
		runtime.Gosched()
	}
	_ = e.Close()
	close(stop)
	writers.Wait()
	if n := most.Load(); n > int64(cap(turns)) {
		t.Errorf("%d streams were read at once, want %d at most", n, cap(turns))
	}
	for _, e := range floods {
		_ = e.Close()
	}
}

// Who has to know what a process has written waits for no turn, nor does Close.
func TestDrainWaitsForNoTurn(t *testing.T) {
	for range cap(turns) {
		turns <- struct{}{}
		defer func() { <-turns }()
	}
	e, l := open(t, Pipes)
	_, _ = e.Stdout().WriteString("a\n")
	e.Drain()
	_, _ = e.Stdout().WriteString("b\n")
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if got := l.take(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q", got)
	}
}

// TL-26: a long line is cut; one of exactly the limit is not followed by an empty one.
func TestLongLines(t *testing.T) {
	for _, tt := range []struct {
		size int
		want []int
	}{{maxLine - 1, []int{maxLine - 1}}, {maxLine, []int{maxLine}}, {maxLine + 1, []int{maxLine, 1}}, {3*maxLine + 5, []int{maxLine, maxLine, maxLine, 5}}, {0, []int{0}}} {
		e, l := open(t, Pipes)
		_, _ = e.Stdout().WriteString(strings.Repeat("a", tt.size) + "\nend\n")
		e.Drain()
		var sizes []int
		for _, s := range l.take() {
			sizes = append(sizes, len(s))
		}
		if want := append(tt.want, 3); !slices.Equal(sizes, want) {
			t.Errorf("%d bytes: lines of %v, want %v", tt.size, sizes, want)
		}
		_ = e.Close()
	}
}

// SUP-20, LOG-12: a grandchild that keeps a descriptor delays neither Close nor last words.
func TestCloseDoesNotWaitForOtherHolders(t *testing.T) {
	e, l := open(t, Pipes)
	fd, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", e.Stdout().Fd()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fd.Close() }()
	_, _ = e.Stdout().WriteString("last words")
	_ = e.Stderr().Close() // LOG-12: the end of one does not end the other
	_, _ = fd.WriteString(", and more")
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if got := l.take(); !slices.Equal(got, []string{"last words, and more"}) {
		t.Errorf("%q", got)
	}
}

// LOG-12: one question for all descriptors sees what is there on any of them.
func TestQuiet(t *testing.T) {
	for _, kind := range []Descriptors{Pipes, Sockets} {
		e, err := Open(kind, true, func(Message) {})
		if err != nil {
			t.Fatal(err)
		}
		s := e.streams[2] // of frames
		s.mu.Lock()       // its goroutine reads no more than one piece
		if !e.quiet() {
			t.Errorf("%s: not quiet, though nothing was written", kind)
		}
		if _, err := e.Frames().Write(make([]byte, 2*readBytes)); err != nil {
			t.Fatal(err)
		}
		if e.quiet() {
			t.Errorf("%s: quiet, though there is something to read", kind)
		}
		s.mu.Unlock()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}
