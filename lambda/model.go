package lambda

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"unicode/utf16"
)

// model.json has the facts that AWS publishes about the operations and shapes of the API. It
// names its source and licence; scripts/lambda-model.py makes it.
//
//go:embed model.json
var modelJSON []byte

// model is the content of model.json.
type model struct {
	Operations []*operation
	Shapes     map[string]*shape
}

// An operation is one of the API, as the model declares it.
type operation struct {
	Name   string
	Method string
	Path   string // a template, such as /2015-03-31/functions/{FunctionName}
	Status int    // of a successful answer
	Input  string // the name of a structure; "" if there is none
	Output string // likewise
	Errors []string

	route []string // the parts of Path between slashes
	query string   // of Path, such as find=LayerVersion; "" if it has none
}

// A shape is a type of the API with its constraints.
type shape struct {
	Type      string // structure, list, map, string, integer, long, boolean, double, float, timestamp or blob
	Members   []member
	Required  []string
	Member    string // of a list
	Key       string // of a map
	Value     string // of a map
	Enum      []string
	Pattern   string
	Min, Max  *float64
	Sensitive bool // the value must not be shown
	Streaming bool
	Payload   string // the member that is the body
	Exception bool
	Status    int // of an exception

	known   []string                 // Enum of Runtime, which is no constraint: see checkRuntime
	matches func() func(string) bool // reports whether a whole string has the pattern
	allowed string                   // Enum in the order of AWS's messages
}

// A member is one of a structure.
type member struct {
	Name     string
	Shape    string
	Location string // uri, querystring, header, headers or statusCode; "" is the body
	As       string // its name there
}

// api returns the model. Only the process that serves the API reads it.
var api = sync.OnceValue(func() *model {
	m, err := parseModel(modelJSON)
	if err != nil { // TestModel reads it
		panic("model.json: " + err.Error())
	}
	return m
})

func parseModel(data []byte) (*model, error) {
	var m model
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	for name, s := range m.Shapes {
		if s.Pattern != "" {
			s.matches = sync.OnceValue(func() func(string) bool { return matcher(s.Pattern) })
		}
		if name == "Runtime" {
			s.known, s.Enum = s.Enum, nil
		}
		if name == "LayerVersionArn" { // a group around all of it, which recorded messages do not have
			s.Pattern = strings.TrimSuffix(strings.TrimPrefix(s.Pattern, "("), ")")
		}
		s.allowed = strings.Join(javaOrder(s.Enum), ", ")
		for _, part := range []string{s.Member, s.Key, s.Value} {
			if _, ok := m.Shapes[part]; part != "" && !ok {
				return nil, fmt.Errorf("shape %s uses %s, which is not there", name, part)
			}
		}
		for _, member := range s.Members {
			if _, ok := m.Shapes[member.Shape]; !ok {
				return nil, fmt.Errorf("shape %s uses %s, which is not there", name, member.Shape)
			}
		}
	}
	for _, o := range m.Operations {
		path, query, _ := strings.Cut(o.Path, "?")
		o.route, o.query = strings.Split(strings.Trim(path, "/"), "/"), query
	}
	return &m, nil
}

// shape returns the shape of a name, nil if there is none.
func (m *model) shape(name string) *shape { return m.Shapes[name] }

// member returns the member of that name, nil if there is none.
func (s *shape) member(name string) *member {
	for i := range s.Members {
		if s.Members[i].Name == name {
			return &s.Members[i]
		}
	}
	return nil
}

// matcher returns a function that reports whether a whole string has a pattern of the model.
// The patterns are Java's. Go's regular expressions have no assertions, which a few of the
// patterns use: their meaning is here by hand.
func matcher(pattern string) func(string) bool {
	var not *regexp.Regexp
	switch pattern {
	case `(?!^[0-9]+$)([a-zA-Z0-9-_]+)`, `((?!^\d+$)^[0-9a-zA-Z-_]+$)`: // Alias, FunctionUrlQualifier
		pattern, not = `[a-zA-Z0-9-_]+`, regexp.MustCompile(`^[0-9]+$`)
	case `[0-9A-Za-z\.\-_]*(?<!\.)`: // S3Bucket
		pattern, not = `[0-9A-Za-z\.\-_]*`, regexp.MustCompile(`\.$`)
	case `(^(?!(system\x2e)))(^[_a-zA-Z0-9])([^$]*)`: // CollectionName
		pattern, not = `[_a-zA-Z0-9][^$]*`, regexp.MustCompile(`^system\.`)
	}
	if before, ok := strings.CutSuffix(pattern, `(:((?!\d+$)[0-9a-zA-Z-_]+))?`); ok { // FunctionUrlFunctionName
		pattern, not = before+`(:([0-9a-zA-Z-_]+))?`, regexp.MustCompile(`:[0-9]+$`)
	}
	whole := regexp.MustCompile(`^(?:` + pattern + `)$`)
	return func(s string) bool { return whole.MatchString(s) && (not == nil || !not.MatchString(s)) }
}

// javaOrder returns the values in the order in which AWS's messages list them: that of a hash
// set of Java. All recorded messages whose values the model knows have it.
func javaOrder(values []string) []string {
	size := uint32(16)
	for len(values)*4 > int(size)*3 {
		size *= 2
	}
	buckets := make([][]string, size)
	for _, v := range values {
		var h uint32
		for _, unit := range utf16.Encode([]rune(v)) {
			h = 31*h + uint32(unit)
		}
		h ^= h >> 16
		buckets[h&(size-1)] = append(buckets[h&(size-1)], v)
	}
	sorted := make([]string, 0, len(values))
	for _, b := range buckets {
		sorted = append(sorted, b...)
	}
	return sorted
}
