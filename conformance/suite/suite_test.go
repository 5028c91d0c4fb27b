package suite

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPlace(t *testing.T) {
	v := Values{Dir: "/d", Layer: "/l's", LayerUsed: true, Host: "h", Port: "1", TimeoutSeconds: 3, MemoryMB: 128, Handler: "a.b", Env: []string{"A=x y", "B="}}
	got, err := Place("run {dir} {layer} {layer:-l} {listen} {port} {timeout} {memory} {handler} {env:-e}", v)
	if want := `run '/d' '/l'\''s' -l '/l'\''s' 'h:1' 1 3 128 'a.b' -e 'A=x y' -e 'B='`; err != nil || got != want {
		t.Errorf("Place = %s, %v; want %s", got, err, want)
	}
	if got, err := Place("{layer:-l}", Values{Layer: "/l"}); err != nil || got != "" {
		t.Errorf("unused layer: %q, %v", got, err)
	}
	for _, bad := range []string{"{nothing}", "{dir"} {
		if got, err := Place(bad, v); err == nil {
			t.Errorf("Place(%q) = %q", bad, got)
		}
	}
}

const spec = "## 1. One\n### 1.1 First\n- AB-01 text | more\n- DEV-01 no\n## 2. Two\n| ID | x |\n| AB-02 | cell |\n"

func TestRequirements(t *testing.T) {
	got, err := Requirements(strings.NewReader(spec))
	want := []Requirement{{"AB-01", "1.1 First", "text | more"}, {"AB-02", "2. Two", "cell"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Requirements = %+v, %v", got, err)
	}
	for _, bad := range []string{"", spec + "- AB-01 again\n"} {
		if got, err := Requirements(strings.NewReader(bad)); err == nil {
			t.Errorf("accepted: %+v", got)
		}
	}
}

func TestCheck(t *testing.T) {
	requirements, err := Requirements(strings.NewReader(spec + "- AB-03 x\n- AB-04 y\n"))
	if err != nil {
		t.Fatal(err)
	}
	cases := []Case{{ID: "AB-01"}, {ID: "AB-01"}, {ID: "ZZ-01"}}
	got := Check(requirements, cases, map[string]string{"AB-02": "p.TestA p.TestGone"}, map[string]string{"AB-03": "later", "ZZ-02": "x"}, map[string]bool{"p.TestA": true})
	want := []string{"AB-01 has two cases", "AB-02: there is no test p.TestGone", "AB-04 has neither a case nor a test: y",
		"ZZ-01 has a case, but is not in the specification", "ZZ-02 is pending, but is not in the specification"}
	if !slices.Equal(got, want) {
		t.Errorf("Check:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTable(t *testing.T) {
	got, err := Table("# comment\nA-1 x y\n\nB-2 z\n")
	if err != nil || len(got) != 2 || got["A-1"] != "x y" {
		t.Errorf("Table = %v, %v", got, err)
	}
	for _, bad := range []string{"A-1\n", "A-1 x\nA-1 y\n"} {
		if _, err := Table(bad); err == nil {
			t.Errorf("Table accepted %q", bad)
		}
	}
}

// frame is an event-stream message, made by hand from INV-30.
func frame(name, value, payload string) []byte {
	head := append([]byte{byte(len(name))}, name...)
	head = append(head, 7)
	head = append(binary.BigEndian.AppendUint16(head, uint16(len(value))), value...)
	b := binary.BigEndian.AppendUint32(nil, uint32(12+len(head)+len(payload)+4))
	b = binary.BigEndian.AppendUint32(b, uint32(len(head)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(append(b, head...), payload...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func TestReadMessage(t *testing.T) {
	good := frame(":event-type", "PayloadChunk", "hello")
	r := bytes.NewReader(good)
	m, err := ReadMessage(r)
	if err != nil || m.Kind() != "PayloadChunk" || string(m.Payload) != "hello" {
		t.Errorf("ReadMessage = %+v, %v", m, err)
	}
	if _, err := ReadMessage(r); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for i := range good { // any changed byte is noticed
		bad := slices.Clone(good)
		bad[i] ^= 1
		if _, err := ReadMessage(bytes.NewReader(bad)); err == nil {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
	if _, err := ReadMessage(bytes.NewReader(good[:len(good)-1])); err == nil {
		t.Error("a frame that is cut short was accepted")
	}
}

func TestBookWaitsForWholeLines(t *testing.T) {
	b := newBook()
	found := make(chan bool)
	go func() { found <- b.wait("REPORT", time.Minute) }()
	io.WriteString(b, "REP")
	io.WriteString(b, "ORT 1\n")
	if !<-found {
		t.Error("a line that came in pieces was not found")
	}
	b.end()
	if b.wait("more", time.Minute) {
		t.Error("found what nobody wrote")
	}
}

func TestMatrix(t *testing.T) {
	const events = `{"Action":"pass","Test":"TestClientRuntimeB/b_b@2.0/succeeds"}
{"Action":"output","Test":"TestClientRuntimeA/a/b@1/streams","Output":"x"}
{"Action":"fail","Test":"TestClientRuntimeA/a/b@1/streams"}
{"Action":"pass","Test":"TestClientRuntimeA/a/b@1"}
{"Action":"pass","Test":"TestClientCallerC/c/other_types"}
{"Action":"pass","Test":"TestClientPair/a/b@1/curl_-d"}
{"Action":"fail","Test":"TestClientPair/a/b@1/boto3"}
{"Action":"pass","Test":"TestClientHeap"}
{"Action":"pass"}
`
	var got strings.Builder
	if err := Matrix(strings.NewReader(events), &got); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| Runtime client | succeeds | fails | streams | logs JSON | times out |\n|---|---|---|---|---|---|\n" +
			"| `a/b@1` | – | – | **failed** | – | – |\n| `b_b@2.0` | passed | – | – | – | – |\n",
		"| Caller | succeeds | fails | streams | logs JSON | times out | other types |\n",
		"| `c` | – | – | – | – | – | passed |\n",
		"| Runtime client, called by | boto3 | curl -d |\n|---|---|---|\n| `a/b@1` | **failed** | passed |\n",
	} {
		if !strings.Contains(got.String(), want) {
			t.Errorf("%s\nlacks\n%s", got.String(), want)
		}
	}
	if err := Matrix(strings.NewReader(`{"Action":"pass","Test":"TestOther"}`), io.Discard); err == nil {
		t.Error("a matrix without clients")
	}
}

func TestReport(t *testing.T) {
	requirements, err := Requirements(strings.NewReader(spec))
	if err != nil {
		t.Fatal(err)
	}
	r := &Report{Target: "x", Requirements: requirements, Results: []Result{{ID: "AB-01", Status: Failed, Seen: "a | b"}}, Coverage: map[string]string{"AB-02": "p.TestA"}, Clients: "## Clients\n"}
	var text, page, events bytes.Buffer
	if err := r.Text(&text); err != nil {
		t.Fatal(err)
	}
	if err := r.Markdown(&page); err != nil {
		t.Fatal(err)
	}
	if err := r.Events(&events); err != nil {
		t.Fatal(err)
	}
	if want := `{"Action":"fail","Package":"conformance","Test":"AB-01"}` + "\n"; events.String() != want {
		t.Errorf("events %q, want %q", events.String(), want)
	}
	for _, want := range []string{"AB-01  failed: a | b", "0 passed, 1 failed"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("text %q lacks %q", text.String(), want)
		}
	}
	for _, want := range []string{"\n## Clients\n\n## 1.1 First\n", `| AB-01 | text \| more | failed: a \| b |`, "| AB-02 | cell | `p.TestA` |"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("page %q lacks %q", page.String(), want)
		}
	}
	if !r.Bad() {
		t.Error("a failed case is not bad")
	}
}
