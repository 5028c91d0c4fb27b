package lambda

import (
	"net/http/httptest"
	"strings"
	"testing"
)

// The path of every operation leads to it, and its members are what was escaped.
func TestRoutes(t *testing.T) {
	m := api()
	for _, o := range m.Operations {
		path := o.Path
		for _, part := range o.route {
			if name, ok := placeholder(part); ok {
				path = strings.Replace(path, part, "a%2Fb%3A"+name, 1)
			}
		}
		got, members, err := m.route(httptest.NewRequest(o.Method, path, nil))
		if err != nil || got != o {
			t.Errorf("%s %s: %v, %v; want %s", o.Method, path, got, err, o.Name)
			continue
		}
		for name, value := range members {
			if value != "a/b:"+name {
				t.Errorf("%s: %s is %q", o.Name, name, value)
			}
		}
	}
}

func TestUnknownRoutes(t *testing.T) {
	f := newFixture(t, nil)
	for _, target := range []string{"/", "/2015-03-31/functions/a/b/c", "/2015-03-31/functions//configuration", "/2014-11-11/functions", "/2015-03-31"} {
		a := f.send("GET", target, nil)
		if a.status != 404 || a.errorType() != "UnknownOperationException" {
			t.Errorf("%s: %d %s", target, a.status, a.raw)
		}
	}
	if a := f.send("PATCH", "/2015-03-31/functions", nil); a.status != 404 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	// SDKs of old ended this path with a slash.
	if a := f.send("GET", "/2015-03-31/functions/", nil); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

// An operation that is not there is refused, and changes nothing.
func TestUnsupportedOperations(t *testing.T) {
	f := newFixture(t, nil)
	for _, o := range api().Operations {
		if _, ok := handlers[o.Name]; ok {
			continue
		}
		a := f.send(o.Method, strings.NewReplacer("{", "", "}", "").Replace(o.Path), "{}")
		if a.status != 400 || a.errorType() != "InvalidParameterValueException" || !strings.Contains(a.text(), o.Name) {
			t.Errorf("%s: %d %s", o.Name, a.status, a.raw)
		}
	}
	if keys := f.store.keys(""); len(keys) > 0 {
		t.Errorf("the store has %v", keys)
	}
}
