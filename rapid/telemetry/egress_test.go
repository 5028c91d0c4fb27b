package telemetry

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
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

// clear is take, and forgets them.
func (l *lineLog) clear() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	got := l.got
	l.got = nil
	return got
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
				_, _ = fmt.Fprintf(e.Lines(), "%d\r\n", i)
				e.Drain()
				if got := l.take(); len(got) != i+1 || got[i] != fmt.Sprintf("%d\r", i) {
					t.Fatalf("after line %d: %d lines, last %q", i, len(got), got[len(got)-1])
				}
			}
			_, _ = e.Lines().WriteString("no newline")
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
				_, _ = e.Lines().Write(line)
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
					_, _ = e.Lines().Write(newlines)
				}
			}
		})
	}
	e, l := open(t, Pipes)
	_, _ = e.Lines().WriteString("a line\n")
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
	_, _ = e.Lines().WriteString("a\n")
	e.Drain()
	_, _ = e.Lines().WriteString("b\n")
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
		_, _ = e.Lines().WriteString(strings.Repeat("a", tt.size) + "\nend\n")
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
	var l lineLog
	e, err := Open(Pipes, true, l.emit)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", e.Lines().Fd()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fd.Close() }()
	_, _ = e.Lines().WriteString("last words")
	_ = e.Frames().Close() // LOG-12: the end of one does not end the other
	_, _ = fd.WriteString(", and more")
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if got := l.take(); !slices.Equal(got, []string{"last words, and more"}) {
		t.Errorf("%q", got)
	}
}

// LOG-13: what was written in turn to the descriptors of a process is emitted in that order,
// whoever reads it: the goroutine between the writes, or one Drain after them.
func TestOrder(t *testing.T) {
	for _, kind := range []Descriptors{Pipes, Sockets} {
		for _, drained := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,drained=%t", kind, drained), func(t *testing.T) {
				if drained { // the goroutine gets no turn
					for range cap(turns) {
						turns <- struct{}{}
						defer func() { <-turns }()
					}
				}
				var l lineLog
				e, err := Open(kind, true, l.emit)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = e.Close() }()
				names := []string{"lines", "frames"}
				for round := range 500 {
					order := rand.Perm(len(names))
					var want []string
					for _, i := range order {
						text := []byte(names[i] + "\n")
						if i == 1 {
							text = frame(0xA55A0003, 0, names[i])
						}
						if _, err := e.ends[i].Write(text); err != nil {
							t.Fatal(err)
						}
						want = append(want, names[i])
					}
					if drained {
						e.Drain()
					} else {
						for len(l.take()) < len(want) {
							runtime.Gosched()
						}
					}
					if got := l.clear(); !slices.Equal(got, want) {
						t.Fatalf("round %d: wrote %q, got %q", round, want, got)
					}
				}
			})
		}
	}
}

// A process can put its pipe in packet mode, so that a read returns one write: nothing is
// left behind without an event. It can also take back what it wrote.
func TestHostilePipes(t *testing.T) {
	e, l := open(t, Pipes)
	packets, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", e.Lines().Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(packets) }()
	if _, err := unix.FcntlInt(uintptr(packets), unix.F_SETFL, unix.O_RDWR|unix.O_DIRECT|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	e.mu.Lock() // the goroutine comes when all are there
	for i := range 10 {
		_, _ = unix.Write(packets, []byte{'0' + byte(i), '\n'})
	}
	e.mu.Unlock()
	for len(l.take()) < 10 {
		runtime.Gosched()
	}
	for range 1000 {
		_, _ = unix.Write(packets, []byte("mine\n"))
		_, _ = unix.Read(packets, make([]byte, 16))
		e.Drain()
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
