package sqlite

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/state"
)

// BenchmarkEnqueue adds events of 1 KiB from so many goroutines, and says how many share a
// commit, which is one fsync.
func BenchmarkEnqueue(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			s := folder(b.TempDir()).Open(b)
			defer s.Close()
			event := bytes.Repeat([]byte("event..."), 128)
			before := s.Stats()
			work := make(chan struct{}, writers)
			done := make(chan error)
			for range writers {
				go func() {
					var err error
					for range work {
						if err == nil {
							err = s.Update(b.Context(), func(tx *state.Tx) error { _, err := tx.Enqueue("q", event, time.Time{}); return err })
						}
					}
					done <- err
				}()
			}
			b.ResetTimer()
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			for range writers {
				if err := <-done; err != nil {
					b.Error(err)
				}
			}
			after := s.Stats()
			b.ReportMetric(float64(after.Updates-before.Updates)/float64(after.Commits-before.Commits), "events/commit")
		})
	}
}

// functions stores keys of 2 KiB as functions have them.
func functions(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	s := folder(dir).Open(b)
	value := bytes.Repeat([]byte("function"), 256)
	for i := 0; i < n; i += 100 {
		if err := s.Update(b.Context(), func(tx *state.Tx) error {
			for j := i; j < i+100; j++ {
				if err := tx.Put(fmt.Sprintf("fn/%05d", j), value); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	return dir
}

// BenchmarkOpen opens and verifies stores of so many functions.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{0, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := functions(b, n)
			for b.Loop() {
				if err := folder(dir).Open(b).Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkGet reads one of 10,000 functions in a view of its own.
func BenchmarkGet(b *testing.B) {
	s := folder(functions(b, 10000)).Open(b)
	defer s.Close()
	i := 0
	for b.Loop() {
		i = (i + 7919) % 10000
		if err := s.View(b.Context(), func(r *state.Reader) error { _, err := r.Get(fmt.Sprintf("fn/%05d", i)); return err }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkList reads pages of 50 functions of so many.
func BenchmarkList(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := folder(functions(b, n)).Open(b)
			defer s.Close()
			for b.Loop() {
				if err := s.View(b.Context(), func(r *state.Reader) error {
					l, err := r.List("fn/", fmt.Sprintf("fn/%05d", n/2), 50)
					if len(l) != 49+min(1, (n-100)/1000) {
						b.Errorf("%d functions", len(l))
					}
					return err
				}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
