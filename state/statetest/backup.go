package statetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/sandboxd/sandboxd/state"
)

// files are blobs in memory.
type files struct {
	blobs map[[sha256.Size]byte][]byte
	held  int
}

func newFiles(contents ...string) *files {
	f := &files{blobs: map[[sha256.Size]byte][]byte{}}
	for _, c := range contents {
		f.blobs[sha256.Sum256([]byte(c))] = []byte(c)
	}
	return f
}

func (f *files) Hold() func() {
	f.held++
	return func() { f.held-- }
}

func (f *files) List(context.Context) (list [][sha256.Size]byte, err error) {
	if f.held == 0 {
		return nil, errors.New("the blobs are not held")
	}
	for d := range f.blobs {
		list = append(list, d)
	}
	return list, nil
}

func (f *files) Open(d [sha256.Size]byte) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(f.blobs[d])), nil
}

func (f *files) Restore(_ context.Context, d [sha256.Size]byte, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil && sha256.Sum256(b) != d {
		err = errors.New("another content")
	}
	f.blobs[d] = b
	return err
}

func newFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "backup"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func testBackup(t *testing.T, p Place) {
	fill(t, p)
	s := opened(t, p)
	leased := lease(t, s, "q1", at(0), at(10), 1)
	big := string(bytes.Repeat([]byte("blob"), 1<<18))
	blobs := newFiles("", "one", big)
	f := newFile(t)
	sum, err := s.Backup(ctx, f, blobs)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "rows and blobs", fmt.Sprint(sum.Rows, sum.Blobs, sum.Bytes, blobs.held), fmt.Sprint(30, 3, len(big)+3, 0))

	q, restored := p.Other(t), newFiles()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if again, err := state.Restore(ctx, q.Engine(t), f, restored); err != nil || again != sum {
		t.Fatalf("Restore: %+v, %v; want %+v", again, err, sum)
	}
	for d, b := range blobs.blobs {
		if !bytes.Equal(restored.blobs[d], b) {
			t.Errorf("the blob %x is not restored", d)
		}
	}
	s2 := opened(t, q)
	expect(t, "damage", s2.Damage(), "[]")
	if s2.Epoch() == s.Epoch() || len(s2.Epoch()) < 16 {
		t.Errorf("the restored store has the epoch %q, and the old one %q", s2.Epoch(), s.Epoch())
	}
	for i := range 5 {
		expect(t, "a key", get(t, s2, fmt.Sprintf("k%d", i)), fmt.Sprintf("value %d", i))
	}
	view(t, s2, func(r *state.Reader) error {
		for table, read := range reads {
			if err := read(r, 2); err != nil {
				t.Errorf("%s: %v", table, err)
			}
		}
		return nil
	})
	update(t, s2, func(tx *state.Tx) error { return tx.Finish("q1", leased[0].ID, leased[0].Token) })
	if id := enqueue(t, s2, "q1", "", at(0)); id <= leased[0].ID+3 {
		t.Errorf("number %d was given again", id)
	}
	mustVerify(t, s2)
}

// testBackupLive backs up while pairs of keys change together.
func testBackupLive(t *testing.T, p Place) {
	s := opened(t, p)
	set := func(n int) func(*state.Tx) error {
		return func(tx *state.Tx) error {
			for i := range 20 {
				if err := tx.Put(fmt.Sprintf("%02d", i), []byte(strconv.Itoa(n))); err != nil {
					return err
				}
			}
			return nil
		}
	}
	update(t, s, set(0))
	stop, changed := make(chan struct{}), make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := s.Update(ctx, set(n)); err != nil {
				t.Error(err)
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	})
	for range 5 {
		<-changed
		f := newFile(t)
		if _, err := s.Backup(ctx, f, nil); err != nil {
			t.Fatal(err)
		}
		f.Seek(0, io.SeekStart)
		q := p.Other(t)
		if _, err := state.Restore(ctx, q.Engine(t), f, nil); err != nil {
			t.Fatal(err)
		}
		s2 := q.Open(t)
		first := get(t, s2, "00")
		for i := range 20 {
			expect(t, "a key of the backup", get(t, s2, fmt.Sprintf("%02d", i)), first)
		}
		s2.Close()
	}
	close(stop)
	wg.Wait()
}

// testBackupOfDamage makes no backup of damage, and takes none that is damaged.
func testBackupOfDamage(t *testing.T, p Place) {
	fill(t, p)
	s := p.Open(t)
	f := newFile(t)
	if _, err := s.Backup(ctx, f, newFiles("blob")); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	check := func(b []byte) error {
		_, err := state.CheckBackup(ctx, bytes.NewReader(b))
		return err
	}
	if err := check(whole); err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		if check(b) == nil {
			t.Errorf("a flipped bit in byte %d of %d was not found", i, len(whole))
		}
		if check(whole[:i]) == nil {
			t.Errorf("a backup of %d bytes, cut to %d, passes", len(whole), i)
		}
	}
	if check(append(bytes.Clone(whole), 0)) == nil {
		t.Error("a backup with a byte too many passes")
	}
	// A blob that is not what it was.
	blobs := newFiles("blob")
	for d := range blobs.blobs {
		blobs.blobs[d] = []byte("BLOB")
	}
	if _, err := s.Backup(ctx, newFile(t), blobs); !errors.Is(err, state.ErrDamaged) {
		t.Errorf("backup of a damaged blob: %v", err)
	}
	p.Exec(t, fmt.Sprintf("DELETE FROM sandboxd_timers WHERE name = %s", p.Bytes("t2")))
	_, err = s.Backup(ctx, newFile(t), nil)
	want(t, "backup with a row missing", err, state.ErrDamaged)
	want(t, "a change after it", s.Update(ctx, put("a", "")), state.ErrReadOnly)
	s.Close()
}

// testBackupNote streams backups, whose notes are as safe as their rows.
func testBackupNote(t *testing.T, p Place) {
	fill(t, p)
	s := opened(t, p)
	for _, note := range []string{"", "a note", string(bytes.Repeat([]byte("n"), state.MaxNote))} {
		var b bytes.Buffer
		made, err := s.Stream(ctx, &b, newFiles("blob"), note)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := state.CheckBackup(ctx, bytes.NewReader(b.Bytes()))
		if err != nil || sum != made || sum.Note != note || sum.Blobs != 1 {
			t.Errorf("a note of %d bytes: %+v, %v", len(note), sum, err)
		}
		if at := bytes.Index(b.Bytes(), []byte(note)); note != "" {
			b.Bytes()[at] ^= 1
			if _, err := state.CheckBackup(ctx, &b); !errors.Is(err, state.ErrDamaged) {
				t.Errorf("a damaged note: %v", err)
			}
		}
	}
	_, err := s.Stream(ctx, io.Discard, nil, string(make([]byte, state.MaxNote+1)))
	want(t, "a note that is too large", err, state.ErrInvalid)
	failing := errors.New("no reader")
	if _, err := s.Stream(ctx, broken{failing}, newFiles("blob"), ""); !errors.Is(err, failing) {
		t.Errorf("a stream that fails: %v", err)
	}
	update(t, s, put("after", "it"))
}

// broken fails to write.
type broken struct{ err error }

func (b broken) Write([]byte) (int, error) { return 0, b.err }

func testRestoreRefuses(t *testing.T, p Place) {
	fill(t, p)
	s := p.Open(t)
	f := newFile(t)
	if _, err := s.Backup(ctx, f, newFiles("blob")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	whole, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	_, err = state.Restore(ctx, p.Engine(t), bytes.NewReader(whole), newFiles())
	want(t, "over a store", err, state.ErrInUse)
	q := p.Other(t)
	_, err = state.Restore(ctx, q.Engine(t), bytes.NewReader(whole), nil)
	want(t, "without a place for blobs", err, state.ErrInvalid)
	b := bytes.Clone(whole)
	b[len(b)/2] ^= 1
	blobs := newFiles()
	if _, err := state.Restore(ctx, q.Engine(t), bytes.NewReader(b), blobs); err == nil || len(blobs.blobs) > 0 {
		t.Errorf("a damaged backup: %v, and %d blobs", err, len(blobs.blobs))
	}
	want(t, "something else", onlyErr(state.Restore(ctx, q.Engine(t), bytes.NewReader([]byte("PK\x03\x04 no backup at all")), blobs)), state.ErrInvalid)
	// After all of that it still can be restored.
	if _, err := state.Restore(ctx, q.Engine(t), bytes.NewReader(whole), blobs); err != nil {
		t.Fatal(err)
	}
	expect(t, "a restored key", get(t, opened(t, q), "k2"), "value 2")
}

func onlyErr(_ state.Summary, err error) error { return err }
