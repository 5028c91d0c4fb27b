package suite

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// Requirement is one line of the specification that begins with an id.
type Requirement struct {
	ID      string
	Section string // number and title of the section
	Text    string // without the id
}

var (
	requirementLine = regexp.MustCompile(`^(?:- |\| )([A-Z]+-[0-9]+)(?: \| | )(.*)$`)
	sectionLine     = regexp.MustCompile(`^#{2,3} ([0-9]+(?:\.[0-9]+)?\.? .*)$`)
)

// notRequired are the families of ids that say what others do or what is not known, and
// so require nothing: deviations of the emulators, and the register of open questions.
var notRequired = map[string]bool{"DEV": true, "UNC": true}

// Requirements reads the specification. An id that stands twice is an error.
func Requirements(spec io.Reader) ([]Requirement, error) {
	var list []Requirement
	seen := make(map[string]bool)
	section := ""
	sc := bufio.NewScanner(spec)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if m := sectionLine.FindStringSubmatch(sc.Text()); m != nil {
			section = m[1]
			continue
		}
		m := requirementLine.FindStringSubmatch(sc.Text())
		if m == nil {
			continue
		}
		family, _, _ := strings.Cut(m[1], "-")
		if notRequired[family] {
			continue
		}
		if seen[m[1]] {
			return nil, fmt.Errorf("the specification has %s twice", m[1])
		}
		seen[m[1]] = true
		list = append(list, Requirement{m[1], section, strings.TrimSuffix(m[2], " |")})
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read the specification: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("the specification has no requirement")
	}
	return list, nil
}
