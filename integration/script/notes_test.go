package script

import (
	"reflect"
	"testing"
)

func TestPrintedNoteIsParsedBack(t *testing.T) {
	want := Note{Who: "ext-1", What: "SHUTDOWN", At: 1700000000123456, Values: map[string]string{"reason": "timeout", "deadline": "17"}}
	for _, line := range []string{
		want.String(),
		`time="2026-01-01T00:00:00Z" level=info msg="` + want.String() + `"`,
		`{"msg":"` + want.String() + `\n","level":"info"}`,
	} {
		got, ok := ParsePrinted(line)
		if !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("ParsePrinted(%q) = %+v, %v; want %+v", line, got, ok, want)
		}
	}
	if _, ok := ParsePrinted("START RequestId: 1"); ok {
		t.Error("a line without a note was parsed as one")
	}
}

func TestParseLog(t *testing.T) {
	notes, err := ParseLog(Encode(Note{Who: "a", What: "start", At: 1}) + "\n" + Encode(Note{Who: "b", What: "next", At: 2}) + "\n")
	if err != nil || len(notes) != 2 || notes[1].Who != "b" {
		t.Errorf("ParseLog = %+v, %v", notes, err)
	}
	if _, err := ParseLog("not json\n"); err == nil {
		t.Error("a broken line was accepted")
	}
}
