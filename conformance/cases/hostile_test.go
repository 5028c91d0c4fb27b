package cases

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

// hostile is a target that claims to have everything. Whatever a case asks for, answer
// answers.
type hostile struct {
	answer http.HandlerFunc
	log    string // what it prints
}

func (h *hostile) Features() []string {
	return []string{suite.Extensions, suite.Variables, suite.Arguments, suite.URLs}
}

func (h *hostile) Start(context.Context, *suite.Setup) (suite.Instance, error) {
	return hostileInstance{h, httptest.NewServer(h.answer)}, nil
}

type hostileInstance struct {
	*hostile
	server *httptest.Server
}

func (i hostileInstance) URL() string      { return i.server.URL }
func (i hostileInstance) FrontURL() string { return i.server.URL }
func (i hostileInstance) Log() string      { return i.log }
func (i hostileInstance) WaitLog(text string, _ time.Duration) bool {
	return strings.Contains(i.log, text)
}
func (i hostileInstance) Stop() error {
	i.server.CloseClientConnections()
	i.server.Close()
	return nil
}

// says is an answer with a status and a body, whatever the request.
func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body) // the client may be gone
	}
}

// liar is a target that has an entry for every step of a setup and of each event, all of
// them empty but for text: a case gets past the entries that it looks for, and finds
// nothing in them.
func liar(setup *suite.Setup, text, tail string) *hostile {
	var mu sync.Mutex
	var journal script.Entries
	var note func(who, play string, steps []step)
	note = func(who, play string, steps []step) {
		for _, s := range steps {
			name := s.Name
			if name == "" {
				name = s.Op
			}
			if s.Op == "wait" || s.Op == "cancel" {
				name = s.Op + " " + s.Name
			}
			journal = append(journal, script.Entry{Who: who, Play: play, Name: name, Text: text})
			note(who, play, s.Steps)
			note(who, play, s.Last)
		}
	}
	var log strings.Builder
	actors := map[string][][]step{"runtime": setup.Runtime}
	for who, starts := range setup.Extensions {
		actors[who] = starts
	}
	for who, starts := range actors {
		for _, name := range []string{"start", "next", "INVOKE", "SHUTDOWN", "sigterm"} {
			e := script.Entry{Who: who, Name: name, Text: text, Start: 1}
			journal = append(journal, e)
			log.WriteString(e.Print())
		}
		for _, steps := range starts {
			note(who, "", steps)
		}
	}
	return &hostile{log: log.String(), answer: func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var event script.Event
		_ = json.Unmarshal(body, &event) // others are echoed
		if r.Header.Get("X-Amz-Log-Type") != "" {
			w.Header().Set("X-Amz-Log-Result", base64.StdEncoding.EncodeToString([]byte(tail)))
		}
		if r.URL.Path == suite.StreamPath {
			_, _ = w.Write(append(messageOf("PayloadChunk", ""), messageOf("InvokeComplete", text)...))
			return
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case event.Journal:
			_, _ = io.WriteString(w, script.Encode(journal))
		case event.Play != "":
			journal = append(journal, script.Entry{Who: "runtime", Play: event.Play, Name: "next", Text: text})
			note("runtime", event.Play, event.Steps)
		default:
			_, _ = w.Write(body)
		}
	}}
}

// messageOf is a message of an event stream (INV-30) with nothing but its type.
func messageOf(kind, payload string) []byte {
	const name = ":event-type"
	head := append([]byte{byte(len(name))}, name...)
	head = binary.BigEndian.AppendUint16(append(head, 7), uint16(len(kind)))
	head = append(head, kind...)
	b := binary.BigEndian.AppendUint32(nil, uint32(12+len(head)+len(payload)+4))
	b = binary.BigEndian.AppendUint32(b, uint32(len(head)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(append(b, head...), payload...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// Every case comes to an end on every kind of target, however wrong its answers are: it
// may pass, and it may fail, but it neither panics nor hangs.
func TestCasesOnHostileTargets(t *testing.T) {
	hangs := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // the server sees a client that leaves only after that
		<-r.Context().Done()
	}
	breaks := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	endless := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(messageOf("PayloadChunk", strings.Repeat("x", 1000))); err != nil {
				return
			}
		}
	}
	same := func(answer http.HandlerFunc) func(*suite.Setup) *hostile {
		return func(*suite.Setup) *hostile { return &hostile{answer: answer} }
	}
	lies := func(text, tail string) func(*suite.Setup) *hostile {
		return func(s *suite.Setup) *hostile { return liar(s, text, tail) }
	}
	for name, target := range map[string]func(*suite.Setup) *hostile{
		"closes the connection":  same(breaks),
		"does not answer":        same(hangs),
		"does not end":           same(endless),
		"500":                    same(says(http.StatusInternalServerError, `{"message":"no"}`)),
		"404":                    same(says(http.StatusNotFound, "")),
		"429":                    same(says(http.StatusTooManyRequests, "null")),
		"202":                    same(says(http.StatusAccepted, "[]")),
		"204":                    same(says(http.StatusNoContent, "")),
		"a loop of redirections": same(http.RedirectHandler("/", http.StatusTemporaryRedirect).ServeHTTP),
		"nothing":                same(says(http.StatusOK, "")),
		"null":                   same(says(http.StatusOK, "null")),
		"an empty list":          same(says(http.StatusOK, "[]")),
		"a list of null":         same(says(http.StatusOK, "[null]")),
		"a list of nothing":      same(says(http.StatusOK, "[{}]")),
		"an object":              same(says(http.StatusOK, "{}")),
		"text":                   same(says(http.StatusOK, `"text"`)),
		"a frame that is wrong":  same(says(http.StatusOK, strings.Repeat("\xff", 100))),
		"a frame of no type":     same(says(http.StatusOK, string(messageOf("", "")))),
		"the end of a stream":    same(says(http.StatusOK, string(messageOf("InvokeComplete", "null")))),
		"empty entries":          lies("", ""),
		"entries of null":        lies("null", "REPORT RequestId: \n"),
		"entries of objects":     lies("{}", "{}\n[]\nnull\n"),
		"entries of text":        lies("text", strings.Repeat("\n", 5000)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := All()
			results := make(chan suite.Result, len(all))
			for _, c := range all { // each in an environment of its own, as most of them wait
				setup := *c.Setup
				setup.Timeout = 1
				c.Setup = &setup
				go func() {
					r := suite.Run{Target: target(&setup), Patience: 100 * time.Millisecond, Factor: 1}
					list, err := r.All(t.Context(), []suite.Case{c})
					if err != nil || len(list) != 1 {
						t.Errorf("%s: %d results, %v", c.ID, len(list), err)
						list = []suite.Result{{ID: c.ID}}
					}
					results <- list[0]
				}()
			}
			left := map[string]bool{}
			for _, c := range all {
				left[c.ID] = true
			}
			for late := time.After(time.Minute); len(left) > 0; {
				select {
				case res := <-results:
					delete(left, res.ID)
					if strings.Contains(res.Seen, "panicked") {
						t.Errorf("%s: %s", res.ID, res.Seen)
					}
				case <-late:
					t.Fatalf("after a minute these cases have not ended: %v", left)
				}
			}
		})
	}
}

// The messages of the liar are ones that the suite can read.
func TestMessageOf(t *testing.T) {
	m, err := suite.ReadMessage(bytes.NewReader(messageOf("PayloadChunk", "x")))
	if err != nil || m.Kind() != "PayloadChunk" || string(m.Payload) != "x" {
		t.Errorf("%+v, %v", m, err)
	}
}
