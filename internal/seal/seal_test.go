package seal

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

var (
	oldKey, newerKey = bytes.Repeat([]byte{1}, KeySize), bytes.Repeat([]byte{2}, KeySize)
	row              = Place{"fn", "hello"}
)

func ring(t testing.TB, keys ...[]byte) *Ring {
	t.Helper()
	r, err := New(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func seal(t testing.TB, r *Ring, plain string) []byte {
	t.Helper()
	sealed, err := r.Seal([]byte(plain), row)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealAndOpen(t *testing.T) {
	r := ring(t, oldKey)
	// One byte alone is not looked for: by chance it is among the sealed ones.
	for _, plain := range []string{"", "a", strings.Repeat("secret", 1000)} {
		sealed := seal(t, r, plain)
		if got, err := r.Open(sealed, row); err != nil || string(got) != plain {
			t.Errorf("opened %d bytes, %v; want those that were sealed", len(got), err)
		}
		if len(plain) > 8 && bytes.Contains(sealed, []byte(plain)) {
			t.Errorf("the sealed value has the plain one: %x", sealed)
		}
		if bytes.Equal(sealed, seal(t, r, plain)) {
			t.Error("sealing twice gives the same")
		}
	}
}

// Whatever is changed in a sealed value, it opens to nothing.
func TestDamage(t *testing.T) {
	r := ring(t, oldKey, newerKey)
	sealed := seal(t, r, "secret")
	check := func(what string, value []byte, at Place) {
		t.Helper()
		if got, err := r.Open(value, at); got != nil || !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), at.Key) {
			t.Errorf("%s: opened %q, %v; want nothing, and an error that names the row", what, got, err)
		}
		if again, changed, err := r.Reseal(value, at); again != nil || changed || err == nil {
			t.Errorf("%s: resealed %x, %v, %v", what, again, changed, err)
		}
	}
	for i := range sealed {
		for bit := range 8 {
			value := bytes.Clone(sealed)
			value[i] ^= 1 << bit
			check("a bit changed", value, row)
		}
		check("cut", sealed[:i], row)
		check("cut in front", sealed[i+1:], row)
	}
	check("longer", append(bytes.Clone(sealed), 0), row)
	check("another row", sealed, Place{"fn", "hello2"})
	check("another table", sealed, Place{"key", "hello"})
	check("same letters", sealed, Place{"fnh", "ello"})
	// The id of another key in the head does not make that key open it.
	other := seal(t, ring(t, newerKey), "secret")
	check("id of another key", append(bytes.Clone(other[:header]), sealed[header:]...), row)
}

func TestRotation(t *testing.T) {
	before, during, after := ring(t, oldKey), ring(t, newerKey, oldKey), ring(t, newerKey)
	sealed := seal(t, before, "secret")
	if got, err := during.Open(sealed, row); err != nil || string(got) != "secret" {
		t.Errorf("the old key's value opens to %q, %v", got, err)
	}
	if _, err := after.Open(sealed, row); !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), before.IDs()[0]) {
		t.Errorf("without the old key: %v; want ErrNoKey and the key's id %s", err, before.IDs()[0])
	}
	again, changed, err := during.Reseal(sealed, row)
	if err != nil || !changed {
		t.Fatalf("reseal: changed %v, %v", changed, err)
	}
	if got, err := after.Open(again, row); err != nil || string(got) != "secret" {
		t.Errorf("resealed, it opens to %q, %v", got, err)
	}
	if same, changed, err := during.Reseal(again, row); err != nil || changed || !bytes.Equal(same, again) {
		t.Errorf("reseal of what has the new key: changed %v, %v", changed, err)
	}
}

// A value of an earlier version opens in all later ones.
func TestFormatOneOpens(t *testing.T) {
	fixture := []byte(fixtureOne)
	if got, err := ring(t, oldKey).Open(fixture, row); err != nil || string(got) != "of format 1" {
		t.Errorf("opened %q, %v", got, err)
	}
}

func TestNew(t *testing.T) {
	for name, keys := range map[string][][]byte{"none": nil, "short": {oldKey[:31]}, "long": {append(bytes.Clone(oldKey), 1)}, "twice": {oldKey, newerKey, oldKey}} {
		if r, err := New(keys...); err == nil {
			t.Errorf("%s: made a ring of %v", name, r.IDs())
		}
	}
}

func FuzzOpen(f *testing.F) {
	r := ring(f, oldKey)
	f.Add([]byte(fixtureOne))
	f.Add([]byte(fixtureOne[:header]))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		if got, err := r.Open(sealed, row); err == nil && string(sealed) != fixtureOne {
			t.Errorf("opened %q of %x", got, sealed)
		}
	})
}

// fixtureOne is "of format 1", sealed with oldKey for row.
const fixtureOne = "\x01\x7a\x9d\xf5\x0c\xfc\xd6\x2a\xf4\x21\x64\x2f\xfe\xb9\xa4\x4f\xaa\x06\x17\x89\xd7\x29\x00\x49\x70\x97\xb5\x6d\xd3\x24\xe9\x67\xdc\xe9\x06\xc6\x2a\x09\xc1\x6d\x22\x65\x0d\x4d\x91\x19\x73\x79"
