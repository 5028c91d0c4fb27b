package logging

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gate is a reader of log lines that stops reading until it is opened.
type gate struct {
	open chan struct{}
	mu   sync.Mutex
	buf  bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.Write(p)
}

func (g *gate) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.String()
}

// A reader that has stopped blocks nobody; what is lost is counted, and told.
func TestAsyncWriterNeverBlocks(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	o := NewAsyncWriter(g)
	line := strings.Repeat("x", 1023) + "\n"
	const lines = 3 * asyncBytes / 1024
	for range lines {
		if n, err := io.WriteString(o, line); n != len(line) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	o.Close(time.Millisecond) // must give up: this test would hang else
	close(g.open)
	<-o.done
	out := g.String()
	kept := strings.Count(out, line)
	told := 0 // in one message or in several
	for _, m := range regexp.MustCompile(`(\d+) messages were dropped`).FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		told += n
	}
	if kept == 0 || kept == lines || told != lines-kept {
		t.Errorf("%d of %d lines arrived, %d were said to be dropped; end of output %q", kept, lines, told, out[max(0, len(out)-100):])
	}
}

func TestAsyncWriterKeepsOrderAndFlushes(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	o := NewAsyncWriter(g)
	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintf(o, "%d\n", i)
		fmt.Fprintf(&want, "%d\n", i)
	}
	o.Close(time.Minute)
	if g.String() != want.String() {
		t.Error("lines are missing or out of order")
	}
}

// fillPipe has two writers send more lines through a pipe than it holds, so that they wait
// for its reader. Each line is one letter over and over. It returns the lines that are not
// what was written, and how many came.
func fillPipe(t *testing.T, writer func(io.Writer) io.Writer) (broken []string, came int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, lineBytes); err != nil { // the least
		t.Fatal(err)
	}
	const batches, lines = 8, 300
	var wg sync.WaitGroup
	for _, letter := range []string{"a", "b"} {
		fd, err := unix.Dup(int(w.Fd())) // os has a lock for those who share a file
		if err != nil {
			t.Fatal(err)
		}
		own := os.NewFile(uintptr(fd), "pipe")
		to := writer(own)
		wg.Go(func() {
			defer own.Close()
			for range batches {
				var batch strings.Builder
				for i := range lines {
					batch.WriteString(strings.Repeat(letter, 1+i*7%300) + "\n")
				}
				if _, err := io.WriteString(to, batch.String()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	w.Close()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for line := range strings.Lines(string(all)) {
		if text := strings.TrimSuffix(line, "\n"); text == "" || strings.Trim(text, text[:1]) != "" {
			broken = append(broken, text)
		}
		came++
	}
	if want := 2 * batches * lines; len(broken) == 0 && came != want {
		t.Errorf("%d lines, want %d", came, want)
	}
	return broken, came
}

// The lines of the supervisor and of the worker stay whole however slowly standard error
// is read, although each has a lock of its own only. Without the writer they mix.
func TestLinesOfTwoProcesses(t *testing.T) {
	if broken, _ := fillPipe(t, func(w io.Writer) io.Writer { return &LineWriter{w: w} }); len(broken) > 0 {
		t.Errorf("%d lines are mixed, the first %q", len(broken), broken[0])
	}
	if broken, came := fillPipe(t, func(w io.Writer) io.Writer { return w }); len(broken) == 0 {
		t.Errorf("control: %d lines are whole without the writer too", came)
	}
}

// sizes keeps how much each write had.
type sizes []int

func (s *sizes) Write(p []byte) (int, error) {
	*s = append(*s, len(p))
	return len(p), nil
}

// A line that is longer than what a pipe takes at once is one write, which others wait for.
func TestLineWriterSizes(t *testing.T) {
	line := func(n int) string { return strings.Repeat("x", n-1) + "\n" }
	for text, want := range map[string]sizes{
		"":                                      nil,
		line(4096):                              {4096},
		line(4000) + line(97):                   {4000, 97},
		line(10) + line(5000) + line(10):        {10, 5000, 10},
		line(5000) + strings.Repeat("x", 5000):  {5000, 5000},
		line(2000) + line(2000) + line(2000):    {4000, 2000},
		strings.Repeat(line(512), 17) + line(3): {4096, 4096, 515},
	} {
		var got sizes
		if n, err := io.WriteString(&LineWriter{w: &got}, text); n != len(text) || err != nil || !slices.Equal(got, want) {
			t.Errorf("%d bytes were written as %v, %d, %v; want %v", len(text), got, n, err, want)
		}
	}
}

// Every line of the daemon's own log is an object too.
func TestLoggerFormats(t *testing.T) {
	var b bytes.Buffer
	log := New(&b, "warn", true)
	log.Info("not this")
	log.WithField("addr", "127.0.0.1:9000").Warn("this")
	var entry map[string]string
	if err := json.Unmarshal(b.Bytes(), &entry); err != nil || entry["msg"] != "this" || entry["addr"] != "127.0.0.1:9000" {
		t.Errorf("%s: %v", b.String(), err)
	}
	b.Reset()
	New(&b, "warn", false).WithField("addr", "127.0.0.1:9000").Warn("this")
	if !strings.Contains(b.String(), `msg=this addr="127.0.0.1:9000"`) {
		t.Errorf("%s", b.String())
	}
}
