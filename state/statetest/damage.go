package statetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/state"
)

// fill makes a store that has something of everything.
func fill(t testing.TB, p Place) {
	t.Helper()
	s := p.Open(t)
	update(t, s, func(tx *state.Tx) error {
		for i := range 5 {
			if err := put(fmt.Sprintf("k%d", i), fmt.Sprintf("value %d", i))(tx); err != nil {
				return err
			}
			_, err1 := tx.Append(fmt.Sprintf("l%d", i), []byte("record"))
			_, err2 := tx.Append(fmt.Sprintf("l%d", i), []byte("record"))
			_, err3 := tx.Enqueue(fmt.Sprintf("q%d", i), []byte("entry"), at(0))
			err4 := tx.SetTimer(fmt.Sprintf("t%d", i), at(i), []byte("timer"))
			if err := errors.Join(err1, err2, err3, err4); err != nil {
				return err
			}
		}
		return nil
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// reads are reads of one row with number 2, and of a sound one with number 3, in each table.
var reads = map[string]func(r *state.Reader, n int) error{
	"sandboxd_keys": func(r *state.Reader, n int) error {
		v, err := r.Get(fmt.Sprintf("k%d", n))
		if err == nil && string(v) != fmt.Sprintf("value %d", n) {
			err = fmt.Errorf("damage was served: %q", v)
		}
		return err
	},
	"sandboxd_heads": func(r *state.Reader, n int) error {
		_, next, err := r.LogBounds(fmt.Sprintf("l%d", n))
		if err == nil && next != 3 {
			err = fmt.Errorf("damage was served: %d", next)
		}
		return err
	},
	"sandboxd_records": func(r *state.Reader, n int) error {
		records, err := r.ReadLog(fmt.Sprintf("l%d", n), 0, 9)
		if err == nil && (len(records) != 2 || string(records[0].Value)+string(records[1].Value) != "recordrecord") {
			err = fmt.Errorf("damage was served: %v", records)
		}
		return err
	},
	"sandboxd_timers": func(r *state.Reader, n int) error {
		x, err := r.Timer(fmt.Sprintf("t%d", n))
		if err == nil && (string(x.Value) != "timer" || !x.At.Equal(at(n))) {
			err = fmt.Errorf("damage was served: %v", x)
		}
		return err
	},
}

// damages are statements that change the row with number 2 of a table: what, with its name
// in the place of KEY.
var damages = []struct{ table, column, set string }{
	{"sandboxd_keys", "key", "value = OTHER"},
	{"sandboxd_keys", "key", "sum = OTHER"},
	{"sandboxd_keys", "key", "key = OTHER"},
	{"sandboxd_heads", "log", "next = 2"},
	{"sandboxd_heads", "log", "first = 2"},
	{"sandboxd_records", "log", "value = OTHER"},
	{"sandboxd_records", "log", "seq = seq + 5"},
	{"sandboxd_timers", "name", "value = OTHER"},
	{"sandboxd_timers", "name", "at = at + 1"},
	{"sandboxd_timers", "name", "name = OTHER"},
}

func letter(table string) string {
	return map[string]string{"sandboxd_keys": "k", "sandboxd_heads": "l", "sandboxd_records": "l", "sandboxd_queue": "q", "sandboxd_timers": "t"}[table]
}

func testDamagedRow(t *testing.T, p Place) {
	fill(t, p)
	for _, d := range damages {
		what := d.table + " " + d.set
		where := fmt.Sprintf(" WHERE %s = %s", d.column, p.Bytes(letter(d.table)+"2"))
		p.Exec(t, "CREATE TABLE kept AS SELECT * FROM "+d.table)
		p.Exec(t, "UPDATE "+d.table+" SET "+strings.ReplaceAll(d.set, "OTHER", p.Bytes("other"))+where)
		s := p.Open(t)
		if len(s.Damage()) == 0 {
			t.Errorf("%s: it was not found", what)
		}
		view(t, s, func(r *state.Reader) error {
			want(t, what+": read of it", reads[d.table](r, 2), state.ErrDamaged)
			if err := reads[d.table](r, 3); err != nil {
				t.Errorf("%s: read of another: %v", what, err)
			}
			for table, read := range reads {
				// Logs cannot be read without their heads.
				if table != d.table && letter(table) != letter(d.table) && read(r, 2) != nil {
					t.Errorf("%s: read of %s: %v", what, table, read(r, 2))
				}
			}
			return nil
		})
		want(t, what+": a change", s.Update(ctx, put("new", "")), state.ErrReadOnly)
		if err := s.Update(ctx, put("new", "")); err == nil || !strings.Contains(err.Error(), "restore a backup") {
			t.Errorf("%s: the error does not say what to do: %v", what, err)
		}
		s.Close()
		p.Exec(t, "DELETE FROM "+d.table)
		p.Exec(t, "INSERT INTO "+d.table+" SELECT * FROM kept")
		p.Exec(t, "DROP TABLE kept")
	}
	mustVerify(t, opened(t, p))
}

// testMissingRow removes rows: what is not there any more must not be taken for what never
// was, and lists must not be short.
func testMissingRow(t *testing.T, p Place) {
	fill(t, p)
	for _, d := range []struct {
		table, column string
		lists         func(r *state.Reader) error
	}{
		{"sandboxd_keys", "key", func(r *state.Reader) error {
			_, err1 := r.List("", "", 9)
			_, err2 := r.Count("")
			_, err3 := r.Get("never")
			return all(err1, err2, err3)
		}},
		{"sandboxd_heads", "log", func(r *state.Reader) error { _, _, err := r.LogBounds("never"); return err }},
		{"sandboxd_records", "log", func(r *state.Reader) error { _, err := r.ReadLog("l2", 0, 1); return err }},
		{"sandboxd_queue", "queue", func(r *state.Reader) error {
			_, err1 := r.ReadQueue("q2", 0, 9)
			_, _, err2 := r.NextEntry("never")
			return all(err1, err2)
		}},
		{"sandboxd_timers", "name", func(r *state.Reader) error {
			_, err1 := r.Due(state.Forever, 9)
			_, err2 := r.Timer("never")
			return all(err1, err2)
		}},
	} {
		p.Exec(t, "CREATE TABLE kept AS SELECT * FROM "+d.table)
		p.Exec(t, fmt.Sprintf("DELETE FROM %s WHERE %s = %s", d.table, d.column, p.Bytes(letter(d.table)+"2")))
		s := p.Open(t)
		damage := s.Damage()
		if len(damage) != 1 || !strings.Contains(damage[0].What, "are there") {
			t.Errorf("%s: damage %q", d.table, damage)
		}
		view(t, s, func(r *state.Reader) error {
			if read := reads[d.table]; read != nil {
				want(t, d.table+": read of a missing row", read(r, 2), state.ErrDamaged)
				if err := read(r, 3); err != nil {
					t.Errorf("%s: read of another row: %v", d.table, err)
				}
			}
			want(t, d.table+": lists", d.lists(r), state.ErrDamaged)
			return nil
		})
		want(t, d.table+": a change", s.Update(ctx, put("new", "")), state.ErrReadOnly)
		s.Close()
		p.Exec(t, "DELETE FROM "+d.table)
		p.Exec(t, "INSERT INTO "+d.table+" SELECT * FROM kept")
		p.Exec(t, "DROP TABLE kept")
	}
	mustVerify(t, opened(t, p))
}

// all is nil if one of the errors is, and otherwise the first that is no damage.
func all(errs ...error) error {
	for _, err := range errs {
		if err == nil || !errors.Is(err, state.ErrDamaged) {
			return err
		}
	}
	return errs[0]
}

// testForeignRow adds a row that is sound by itself: one of another key.
func testForeignRow(t *testing.T, p Place) {
	fill(t, p)
	p.Exec(t, fmt.Sprintf("INSERT INTO sandboxd_keys SELECT %s, value, sum FROM sandboxd_keys WHERE key = %s", p.Bytes("copy"), p.Bytes("k2")))
	s := opened(t, p)
	if len(s.Damage()) == 0 {
		t.Error("the row was not found")
	}
	expect(t, "the row", get(t, s, "copy"), "damaged")
}

// testOlderRow puts a row back that is sound, and was replaced since.
func testOlderRow(t *testing.T, p Place) {
	fill(t, p)
	p.Exec(t, "CREATE TABLE kept AS SELECT * FROM sandboxd_keys")
	s := p.Open(t)
	update(t, s, put("k2", "newer"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	p.Exec(t, "DELETE FROM sandboxd_keys")
	p.Exec(t, "INSERT INTO sandboxd_keys SELECT * FROM kept")
	p.Exec(t, "DROP TABLE kept")
	s = opened(t, p)
	if len(s.Damage()) != 1 {
		t.Errorf("damage %q", s.Damage())
	}
	want(t, "a change", s.Update(ctx, put("k2", "newest")), state.ErrReadOnly)
}

// testDamagedFacts damages what the store says of itself.
func testDamagedFacts(t *testing.T, p Place) {
	fill(t, p)
	for _, name := range []string{"tally", "format", "epoch"} {
		for _, statement := range []string{
			fmt.Sprintf("UPDATE sandboxd_meta SET value = %s WHERE name = %s", p.Bytes("1"), p.Bytes(name)),
			fmt.Sprintf("UPDATE sandboxd_meta SET sum = %s WHERE name = %s", p.Bytes("1"), p.Bytes(name)),
			fmt.Sprintf("DELETE FROM sandboxd_meta WHERE name = %s", p.Bytes(name)),
		} {
			if name == "format" && strings.Contains(statement, "value") {
				statement = strings.Replace(statement, p.Bytes("1"), p.Bytes("2"), 1) // it is 1
			}
			p.Exec(t, "CREATE TABLE kept AS SELECT * FROM sandboxd_meta")
			p.Exec(t, statement)
			s := p.Open(t)
			if damage := fmt.Sprint(s.Damage()); !strings.Contains(damage, `"`+name+`"`) {
				t.Errorf("%s: damage %s", statement, damage)
			}
			expect(t, statement+": a sound row", get(t, s, "k2"), "value 2")
			expect(t, statement+": no row", get(t, s, "never"), "damaged")
			want(t, statement+": a change", s.Update(ctx, put("new", "")), state.ErrReadOnly)
			s.Close()
			p.Exec(t, "DELETE FROM sandboxd_meta")
			p.Exec(t, "INSERT INTO sandboxd_meta SELECT * FROM kept")
			p.Exec(t, "DROP TABLE kept")
		}
	}
	mustVerify(t, opened(t, p))
}

// testDamageWhileOpen damages a row of an open store.
func testDamageWhileOpen(t *testing.T, p Place) {
	fill(t, p)
	s := opened(t, p)
	p.Exec(t, fmt.Sprintf("UPDATE sandboxd_keys SET value = %s WHERE key = %s", p.Bytes("other"), p.Bytes("k2")))
	expect(t, "before it is read", len(s.Damage()), 0)
	err := s.Update(ctx, func(tx *state.Tx) error {
		tx.Get("k2") // whoever ignores the error
		_, err := tx.Append("l3", nil)
		return err
	})
	want(t, "an update that read it", err, state.ErrReadOnly)
	if err := s.View(ctx, func(r *state.Reader) error { return reads["sandboxd_records"](r, 3) }); err != nil {
		t.Errorf("what the update appended is there: %v", err)
	}
	expect(t, "it", get(t, s, "k2"), "damaged")
	expect(t, "another one", get(t, s, "k3"), "value 3")
	expect(t, "a key that never was", get(t, s, "never"), "damaged")
	expect(t, "damage", s.Damage(), `["k2" in keys: it is not what was written]`)
}

func testVerify(t *testing.T, p Place) {
	s := opened(t, p)
	update(t, s, func(tx *state.Tx) error {
		for i := range 1200 {
			if err := tx.Put(fmt.Sprint(i), []byte("v")); err != nil {
				return err
			}
		}
		return nil
	})
	var last state.Progress
	damage, err := s.Verify(ctx, func(p state.Progress) {
		if p.Rows < last.Rows {
			t.Errorf("progress %v after %v", p, last)
		}
		last = p
	})
	if err != nil || len(damage) != 0 || last.Rows != 1200 || last.Of != 1200 {
		t.Errorf("Verify: %v, %v, %+v", damage, err, last)
	}
}
