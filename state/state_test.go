package state

import (
	"bytes"
	"context"
	"testing"
)

var ctx = context.Background()

// FuzzRow reads rows of backups, which come from outside.
func FuzzRow(f *testing.F) {
	r := row{[]byte("queue"), int64(1), int64(2), int64(3), []byte("token"), []byte("value")}
	f.Add(encodeRow(queue, r, sumRow(queue, r)))
	r = row{[]byte("key"), []byte("value")}
	f.Add(encodeRow(keys, r, sumRow(keys, r)))
	f.Add([]byte{byte(records), 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		tab, r, sum, err := decodeRow(b)
		if err != nil {
			return
		}
		if again := encodeRow(tab, r, sum); !bytes.Equal(again, b) {
			t.Errorf("%x was read from %x", again, b)
		}
	})
}

// FuzzBackup reads backups of any bytes.
func FuzzBackup(f *testing.F) {
	f.Add([]byte(magic))
	f.Add([]byte(magic + "H\x02\x00\x00\x00{}"))
	f.Add([]byte(magic + "H\x0c\x00\x00\x00{\"Format\":1}B\x20\x00\x00\x00________________________________C\x01\x00\x00\x00xD\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := CheckBackup(ctx, bytes.NewReader(b)); err == nil {
			t.Error("a backup that nobody made")
		}
	})
}

// FuzzBounds lists keys by any prefix.
func FuzzBounds(f *testing.F) {
	f.Add("fn/", "fn/a", "fn/b")
	f.Add("\xff", "", "\xff\xff")
	f.Add("a\xff", "b", "a\xff\xff")
	f.Fuzz(func(t *testing.T, prefix, after, key string) {
		if len(key) == 0 || len(key) > MaxKey {
			return
		}
		from, to := bounds(prefix, after)
		in := key >= string(from) && key < string(to)
		if want := len(prefix) <= len(key) && key[:len(prefix)] == prefix && key > after; in != want {
			t.Errorf("key %q, prefix %q, after %q: %v, want %v", key, prefix, after, in, want)
		}
	})
}

// TestTally keeps what it counts, whatever the order.
func TestTally(t *testing.T) {
	a, b := sumRow(keys, row{[]byte("a"), []byte("b")}), sumRow(keys, row{[]byte("ab"), []byte("")})
	if a == b || sumRow(heads, row{[]byte("a"), []byte("b")}) == a {
		t.Error("rows that differ have the same checksum")
	}
	var one, two tally
	one.commits, one.last = 5, 1<<63
	one.counts[timers].add(a)
	one.counts[timers].add(b)
	two.commits, two.last = 5, 1<<63
	two.counts[timers].add(b)
	two.counts[timers].add(b)
	two.counts[timers].add(a)
	two.counts[timers].remove(b)
	if got, err := parseTally(one.bytes()); err != nil || *got != two {
		t.Errorf("%+v, %v, want %+v", got, err, two)
	}
	if _, err := parseTally(one.bytes()[1:]); err == nil {
		t.Error("a tally that is cut short")
	}
}
