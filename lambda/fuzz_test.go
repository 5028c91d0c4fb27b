package lambda

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

// FuzzRoutes sends any request there can be. Every answer is one that an SDK understands, and a
// request that is refused changes nothing.
func FuzzRoutes(f *testing.F) {
	for _, n := range negatives() {
		var body []byte
		switch b := n.body.(type) {
		case nil:
		case string:
			body = []byte(b)
		default:
			body, _ = json.Marshal(b)
		}
		f.Add(n.method, n.target, body)
	}
	f.Add("POST", functions, []byte(`{"FunctionName":"g","Runtime":"python3.12","Handler":"h","Role":"`+testRole+`","Code":{"ZipFile":"UEs="}}`))
	f.Add("PUT", "/2015-03-31/functions/there/code", []byte(`{"ZipFile":"UEs="}`))
	f.Add("GET", "/code/00?Expires=1&Signature=x", []byte(nil))
	s := newFixture(f, nil)
	s.create(newFunction("there"))
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !validMethod(method) {
			return // net/http refuses it before
		}
		s.t = t
		r := httptest.NewRequest("GET", "/", bytes.NewReader(body))
		r.Method, r.URL, r.RequestURI = method, u, target
		s.settled2()
		before := s.store.copy()
		a := s.do(r)
		<-s.calls
		s.settled2()
		for len(s.faults) > 0 {
			t.Error(<-s.faults)
		}
		if a.header.Get("X-Amzn-Requestid") == "" { // a URL of code
			return
		}
		s.shaped(a)
		if a.status >= 300 && len(s.store.keys(functionKeys)) != len((&memStore{rows: before.rows}).keys(functionKeys)) {
			t.Errorf("%s %s: %d %s, and the functions changed", method, target, a.status, a.raw)
		}
	})
}

func validMethod(m string) bool {
	for _, known := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodPatch, http.MethodHead, http.MethodOptions} {
		if m == known {
			return true
		}
	}
	return false
}
