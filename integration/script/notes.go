package script

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Take notes that what happened to who, in the event log and on standard output.
// pairs are keys and values without white space.
func Take(who, what string, pairs ...string) error {
	n := Note{Who: who, What: what, At: time.Now().UnixMicro()}
	if len(pairs) > 0 {
		n.Values = make(map[string]string)
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		n.Values[pairs[i]] = pairs[i+1]
	}
	if _, err := fmt.Println(n); err != nil {
		return err
	}
	f, err := os.OpenFile(EventLog, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	_, err = f.WriteString(Encode(n) + "\n")
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// String is the printed form of the note.
func (n Note) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "NOTE who=%s what=%s at=%d", n.Who, n.What, n.At)
	for _, k := range slices.Sorted(maps.Keys(n.Values)) {
		fmt.Fprintf(&b, " %s=%s", k, n.Values[k])
	}
	return b.String()
}

// ParsePrinted finds a printed note in a line of a log, whatever is around it.
func ParsePrinted(line string) (Note, bool) {
	_, text, found := strings.Cut(line, "NOTE who=")
	if !found {
		return Note{}, false
	}
	if end := strings.IndexAny(text, "\"\\"); end >= 0 {
		text = text[:end] // what follows belongs to a logger's quoting
	}
	n := Note{Values: make(map[string]string)}
	for _, field := range strings.Fields("who=" + text) {
		k, v, _ := strings.Cut(field, "=")
		switch k {
		case "who":
			n.Who = v
		case "what":
			n.What = v
		case "at":
			n.At, _ = strconv.ParseInt(v, 10, 64)
		default:
			n.Values[k] = v
		}
	}
	return n, n.At != 0
}

// ParseLog reads the text of an event log.
func ParseLog(text string) ([]Note, error) {
	var notes []Note
	for line := range strings.Lines(text) {
		var n Note
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			return nil, fmt.Errorf("script: event log line %q: %w", line, err)
		}
		notes = append(notes, n)
	}
	return notes, nil
}
