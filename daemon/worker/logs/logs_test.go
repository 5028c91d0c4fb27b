package logs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// folder has the segments of a test.
type folder struct {
	path string
	full atomic.Bool // nothing can be opened
}

func (d *folder) openSegment(_ context.Context, number int, fresh bool) (*os.File, error) {
	if d.full.Load() {
		return nil, errors.New("no space")
	}
	flags := os.O_RDWR | os.O_APPEND
	if fresh {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	return os.OpenFile(filepath.Join(d.path, strconv.Itoa(number)), flags, 0o600)
}

func (d *folder) existing(t *testing.T) (numbers []int) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, n)
	}
	return numbers
}

func (d *folder) size(t *testing.T) (n int64) {
	for _, number := range d.existing(t) {
		info, err := os.Stat(filepath.Join(d.path, strconv.Itoa(number)))
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

func newLogs(t *testing.T, d *folder, change func(*Config)) *Logs {
	t.Helper()
	cfg := Config{Open: d.openSegment, Existing: d.existing(t), Segments: 8, PerFunction: 3, Bytes: 1000, Age: time.Hour,
		OnError: func(err error) { t.Log(err) }}
	if change != nil {
		change(&cfg)
	}
	l := New(cfg)
	t.Cleanup(l.Close)
	return l
}

func line(format string, args ...any) []byte {
	return fmt.Appendf(nil, "%s %s\n", time.Now().UTC().Format(TimeForm), fmt.Sprintf(format, args...))
}

// all reads what a function has.
func all(t *testing.T, l *Logs, name string, from Position) (texts []string, next Position, lost bool) {
	t.Helper()
	next = from
	err := l.Read(t.Context(), name, from, false, func(line Line) error {
		texts = append(texts, string(line.Text))
		next, lost = line.Next, lost || line.Lost
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return texts, next, lost
}

// Two functions have logs of their own, also after the process has ended. A position goes on
// where it was.
func TestApart(t *testing.T) {
	d := &folder{path: t.TempDir()}
	l := newLogs(t, d, nil)
	a, b := l.Hold("a"), l.Hold("b")
	for i := range 20 {
		a.Write(t.Context(), line("of a %d", i))
		b.Write(t.Context(), line("of b %d", i))
	}
	texts, next, lost := all(t, l, "a", Position{})
	if len(texts) != 20 || texts[0] != "of a 0" || texts[19] != "of a 19" || lost {
		t.Errorf("%q, %v", texts, lost)
	}
	a.Release()
	b.Release()
	l.Close()

	l = newLogs(t, d, nil)
	if again, _, _ := all(t, l, "a", Position{}); !slices.Equal(again, texts) {
		t.Errorf("after a restart %q", again)
	}
	a = l.Hold("a")
	defer a.Release()
	a.Write(t.Context(), line("more"))
	if more, _, lost := all(t, l, "a", next); !slices.Equal(more, []string{"more"}) || lost {
		t.Errorf("from %v on: %q, %v", next, more, lost)
	}
	if none, _, _ := all(t, l, "c", Position{}); none != nil || l.Has(t.Context(), "c") || !l.Has(t.Context(), "b") {
		t.Errorf("c has %q", none)
	}
}

// Whatever functions write, the bounds hold, and what is read is whole lines of the function.
func TestBounds(t *testing.T) {
	d := &folder{path: t.TempDir()}
	l := newLogs(t, d, nil)
	quiet := l.Hold("quiet")
	quiet.Write(t.Context(), line("here"))
	var writing sync.WaitGroup
	for _, name := range []string{"flood", "other"} {
		f := l.Hold(name)
		defer f.Release()
		writing.Go(func() {
			for i := range 500 {
				f.Write(t.Context(), line("%s %d %s", name, i, strings.Repeat("x", i%300)))
			}
		})
	}
	stop, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	reading.Go(func() {
		_ = l.Read(stop, "flood", Position{}, true, func(line Line) error {
			if !strings.HasPrefix(string(line.Text), "flood ") {
				t.Errorf("a line of another log: %q", line.Text)
			}
			return nil
		}, nil)
	})
	writing.Wait()
	cancel()
	reading.Wait()
	if texts, _, _ := all(t, l, "quiet", Position{}); !slices.Equal(texts, []string{"here"}) {
		t.Errorf("the quiet one has %q", texts)
	}
	texts, _, _ := all(t, l, "flood", Position{})
	if len(texts) == 0 || !strings.HasPrefix(texts[len(texts)-1], "flood 499 ") || len(texts) == 500 {
		t.Errorf("%d lines", len(texts))
	}
	if _, _, lost := all(t, l, "flood", Position{Sequence: 1}); !lost {
		t.Error("nobody says that lines are lost")
	}
	if size := d.size(t); size > 7*1000 {
		t.Errorf("%d bytes", size)
	}
	if bytes, dropped := l.Stats(); bytes > 7*1000 || dropped != 0 {
		t.Errorf("%d bytes, %d dropped", bytes, dropped)
	}
	quiet.Release()
}

// More functions than segments: the longest unused one makes room.
func TestAllTaken(t *testing.T) {
	d := &folder{path: t.TempDir()}
	l := newLogs(t, d, nil)
	for i := range 12 {
		f := l.Hold(fmt.Sprint("f", i))
		f.Write(t.Context(), line("x"))
		f.Release()
	}
	for i := range 12 {
		if has := l.Has(t.Context(), fmt.Sprint("f", i)); has != (i >= 4) {
			t.Errorf("f%d: %v", i, has)
		}
	}
	if len(d.existing(t)) != 8 {
		t.Errorf("%d segments", len(d.existing(t)))
	}
	if len(l.functions) != 8 {
		t.Errorf("%d functions are known", len(l.functions))
	}
}

// What cannot be written is dropped and counted, and the log says so when it goes on.
func TestNoSpace(t *testing.T) {
	d := &folder{path: t.TempDir()}
	l := newLogs(t, d, nil)
	f := l.Hold("f")
	defer f.Release()
	d.full.Store(true)
	for range 3 {
		f.Write(t.Context(), line("nowhere"))
	}
	if _, dropped := l.Stats(); dropped != 3 {
		t.Errorf("%d dropped", dropped)
	}
	d.full.Store(false)
	f.Write(t.Context(), line("again"))
	texts, _, _ := all(t, l, "f", Position{})
	if len(texts) != 2 || !strings.Contains(texts[0], "3 lines were dropped") || texts[1] != "again" {
		t.Errorf("%q", texts)
	}
}

// A follower sees lines as they come, across segments.
func TestFollow(t *testing.T) {
	d := &folder{path: t.TempDir()}
	l := newLogs(t, d, func(c *Config) { c.PerFunction = 8 })
	f := l.Hold("f")
	defer f.Release()
	got := make(chan string)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- l.Read(ctx, "f", Position{}, true, func(line Line) error {
			got <- string(line.Text)
			return nil
		}, nil)
	}()
	for i := range 100 {
		f.Write(t.Context(), line("%d", i))
		if text := <-got; text != strconv.Itoa(i) {
			t.Fatalf("%q, want %d", text, i)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Old segments are emptied, but for those that are being written. What follows begins at a
// higher sequence.
func TestAge(t *testing.T) {
	d := &folder{path: t.TempDir()}
	l := newLogs(t, d, nil)
	f, old := l.Hold("f"), l.Hold("old")
	f.Write(t.Context(), line("x"))
	old.Write(t.Context(), line("x"))
	old.Release()
	l.expireBefore(time.Now().Add(time.Hour))
	if l.Has(t.Context(), "old") || !l.Has(t.Context(), "f") {
		t.Error("the wrong segments were emptied")
	}
	f.Release()
	if f.file != nil {
		t.Error("the file of a function without sandboxes is open")
	}
	l.expireBefore(time.Now().Add(time.Hour))
	if size, _ := l.Stats(); size != 0 || d.size(t) != 0 {
		t.Errorf("%d bytes are left, %d on disk", size, d.size(t))
	}
}

// What another process has left in the folder does no harm.
func TestDamaged(t *testing.T) {
	d := &folder{path: t.TempDir()}
	for number, text := range []string{
		"", "nonsense", "sandboxd log 1 1 f\n" + string(line("first")), "sandboxd log 1 1 f\n" + string(line("second")),
		"sandboxd log 1 0 f\n", "sandboxd log 1 99999999999999999999 f\n", "sandboxd log 1 1 ../f\n",
		"sandboxd log 1 7 g\nno time\n" + strings.Repeat("x", 3*MaxLine) + "\n" + string(line("fine")) + "cut short",
	} {
		if err := os.WriteFile(filepath.Join(d.path, strconv.Itoa(number+1)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := newLogs(t, d, nil)
	if texts, _, _ := all(t, l, "f", Position{}); len(texts) != 1 {
		t.Errorf("f: %q", texts)
	}
	if texts, _, _ := all(t, l, "g", Position{}); !slices.Equal(texts, []string{"fine"}) {
		t.Errorf("g: %d lines", len(texts))
	}
	if len(l.functions) != 2 || len(l.free) != 6 {
		t.Errorf("%d functions, free are %d", len(l.functions), l.free)
	}
	for _, s := range []string{"1", "x:1", "1:x", "1:-1", "-1:1"} {
		if p, err := ParsePosition(s); err == nil {
			t.Errorf("%s is %v", s, p)
		}
	}
	if p, err := ParsePosition(Position{3, 4}.String()); err != nil || p != (Position{3, 4}) {
		t.Errorf("%v, %v", p, err)
	}
}
