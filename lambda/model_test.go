package lambda

import (
	"slices"
	"strings"
	"testing"
)

// Every part of the model can be used: shapes are there, patterns compile, each path leads to
// its operation.
func TestModel(t *testing.T) {
	m, err := parseModel(modelJSON)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Operations) != 91 {
		t.Errorf("%d operations, want 91", len(m.Operations))
	}
	for name, s := range m.Shapes {
		if s.Pattern != "" {
			s.matches()("") // must not panic
		}
		if s.Type == "" {
			t.Errorf("shape %s has no type", name)
		}
		for _, r := range s.Required {
			if s.member(r) == nil {
				t.Errorf("shape %s requires %s, which it does not have", name, r)
			}
		}
	}
	for _, o := range m.Operations {
		for _, part := range []string{o.Input, o.Output} {
			if part != "" && m.shape(part) == nil {
				t.Errorf("operation %s uses %s, which is not there", o.Name, part)
			}
		}
	}
	for name := range handlers {
		if !slices.ContainsFunc(m.Operations, func(o *operation) bool { return o.Name == name }) {
			t.Errorf("%s is not an operation of the API", name)
		}
	}
	for _, r := range slices.Concat(runtimes, newer) {
		if !slices.Contains(m.shape("Runtime").known, r) {
			t.Errorf("the model does not know the runtime %s", r)
		}
	}
}

// Go has no assertions, so these patterns are taken apart by hand.
func TestPatternsWithAssertions(t *testing.T) {
	for shape, values := range map[string]map[string]bool{
		"Alias":                   {"live": true, "1a": true, "12": false, "a b": false, "": false},
		"FunctionUrlQualifier":    {"live": true, "12": false, "a-1": true},
		"S3Bucket":                {"bucket.name": true, "bucket.": false},
		"FunctionUrlFunctionName": {"f": true, "f:live": true, "f:1": false, "f:1a": true},
		"CollectionName":          {"c1": true, "system.x": false, "a$b": false},
	} {
		for value, want := range values {
			if got := api().shape(shape).matches()(value); got != want {
				t.Errorf("%s %q: %v, want %v", shape, value, got, want)
			}
		}
	}
}

// The orders that AWS's messages have, as far as they are recorded.
func TestJavaOrder(t *testing.T) {
	for _, want := range []string{
		"Terminate, Allow", "x86_64, arm64", "PublishedVersions, None", "ALL",
		"ipv4, dualstack", "HEAD, DELETE, POST, GET, OPTIONS, PATCH, PUT",
	} {
		values := strings.Split(want, ", ")
		slices.Sort(values)
		if got := strings.Join(javaOrder(values), ", "); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
