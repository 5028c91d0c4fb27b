package sigv4

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// meaning is all of a request that a signature covers, as its readers understand it: the
// method, the path as it was sent, the query as net/url reads it, the host, what is signed
// of the headers, and the body. It knows nothing of the canonical form.
func meaning(r *http.Request) (string, error) {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", err
	}
	signed := query.Get("X-Amz-SignedHeaders")
	if _, list, ok := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders="); ok {
		list, _, _ = strings.Cut(list, ",")
		signed = strings.TrimSpace(list)
	}
	var parameters []string // with their number: "a" twice is not "a" once
	for name, values := range query {
		values = slices.Sorted(slices.Values(values))
		parameters = append(parameters, fmt.Sprintf("%q=%q", name, values))
	}
	slices.Sort(parameters)
	var headers []string
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		if slices.Contains(strings.Split(signed, ";"), strings.ToLower(name)) || strings.HasPrefix(name, "X-Amz-") {
			// Commas separate values, and spaces around a value or several in it mean nothing.
			headers = append(headers, fmt.Sprintf("%s: %q", name, strings.Fields(strings.ReplaceAll(strings.Join(r.Header[name], ","), ",", " , "))))
		}
	}
	body, err := io.ReadAll(r.Body)
	return fmt.Sprintf("%s %q %q %q %q %q %q", r.Method, path, parameters, r.Host, signed, headers, body), err
}

// mutants are the ways to change a byte of a request.
var mutants = []func(wire []byte, at int) []byte{
	func(w []byte, at int) []byte { w[at] ^= 1; return w },
	func(w []byte, at int) []byte { w[at] ^= 0x20; return w }, // the case of letters
	func(w []byte, at int) []byte { w[at] ^= 0x80; return w },
	func(w []byte, at int) []byte { w[at] = ' '; return w },
	func(w []byte, at int) []byte { w[at] = '%'; return w },
	func(w []byte, at int) []byte { return slices.Delete(w, at, at+1) },
	func(w []byte, at int) []byte { return slices.Insert(w, at, w[at]) },
	func(w []byte, at int) []byte { return slices.Insert(w, at, '&') },
	func(w []byte, at int) []byte { return slices.Insert(w, at, '/') },
	func(w []byte, at int) []byte { return slices.Insert(w, at, '.', '/') },
	func(w []byte, at int) []byte { return slices.Insert(w, at, ' ') },
	func(w []byte, at int) []byte { return slices.Insert(w, at, ',') },
	func(w []byte, at int) []byte { return slices.Insert(w, at, 0) },
	func(w []byte, at int) []byte { return slices.Insert(w, at, []byte("X-Amz-A: b\r\n")...) },
}

// checkMutant fails if a changed request is accepted that means something else.
func checkMutant(t *testing.T, original, mutant []byte) (accepted bool) {
	t.Helper()
	r, err := received(mutant)
	if err != nil {
		return false // not a request
	}
	if _, err := verify(r, now); err != nil {
		return false
	}
	means := make([]string, 2)
	for i, wire := range [][]byte{original, mutant} {
		r, err := received(wire)
		if err == nil {
			means[i], err = meaning(r)
		}
		if err != nil {
			t.Fatalf("%q was accepted, but: %v", wire, err)
		}
	}
	if means[0] != means[1] {
		t.Errorf("accepted %q\nin place of %q", means[1], means[0])
	}
	return true
}

// Every byte of every example is changed in every way.
func TestMutationsAreRefused(t *testing.T) {
	for name, e := range examples {
		t.Run(name, func(t *testing.T) {
			wire, tried, accepted := e.sign(t), 0, 0
			for at := range wire {
				for _, mutate := range mutants {
					mutant := mutate(bytes.Clone(wire), at)
					if bytes.Equal(mutant, wire) {
						continue
					}
					tried++
					if checkMutant(t, wire, mutant) {
						accepted++
					}
				}
			}
			t.Logf("%d of %d changed requests were accepted, all of which mean the same", accepted, tried)
			if accepted == 0 {
				t.Error("nothing was accepted, though the case of a header's name means nothing")
			}
		})
	}
}

// What is not signed may change on the way: proxies do it.
func TestChangesThatAreAccepted(t *testing.T) {
	for name, tt := range map[string]struct{ example, old, new string }{
		"case of a name":             {"headers", "X-Amz-Client-Context", "x-aMZ-client-context"},
		"spaces around a value":      {"headers", "X-Amz-Client-Context:   a", "X-Amz-Client-Context: \t a"},
		"spaces in a value":          {"headers", "a   b", "a b"},
		"headers that are joined":    {"headers", "My-Repeated: b\r\nMy-Repeated:  a\r\n", "My-Repeated: b,a\r\n"},
		"a header more":              {"plain", "Host:", "User-Agent: x\r\nX-Amzn-Trace-Id: y\r\nHost:"},
		"no spaces in Authorization": {"plain", ", SignedHeaders", ",SignedHeaders"},
		"escapes in small letters":   {"no body", "%2B", "%2b"},
		"escapes for no reason":      {"no body", "Marker", "%4darker"},
		"order of parameters":        {"no body", "MaxItems=3&Marker=a%2Bb", "Marker=a%2Bb&MaxItems=3"},
		"plus for a space":           {"not ASCII", "=v%20w", "=v+w"},
		"no equals sign":             {"slash in a name", "tagKeys=&x", "tagKeys&x="},
		"presigned, other order":     {"presigned", "?Qualifier=1&X-Amz-Algorithm=AWS4-HMAC-SHA256&", "?X-Amz-Algorithm=AWS4-HMAC-SHA256&Qualifier=1&"},
	} {
		t.Run(name, func(t *testing.T) {
			wire := string(examples[tt.example].sign(t))
			if !strings.Contains(wire, tt.old) {
				t.Fatalf("no %q in %q", tt.old, wire)
			}
			wire = strings.Replace(wire, tt.old, tt.new, 1)
			r, err := received([]byte(wire))
			if err == nil {
				_, err = verify(r, now)
			}
			if err != nil {
				t.Errorf("%v\n%s", err, wire)
			}
		})
	}
}

// FuzzMutation changes several bytes of an example.
func FuzzMutation(f *testing.F) {
	names := slices.Sorted(maps.Keys(examples))
	signed := make([][]byte, len(names))
	for i, name := range names {
		signed[i] = examples[name].sign(f)
		f.Add(uint8(i), uint16(20), uint8(1), []byte("/"))
		f.Add(uint8(i), uint16(200), uint8(0), []byte("\r\nX-Amz-A: b"))
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint16, remove uint8, insert []byte) {
		wire := signed[int(which)%len(signed)]
		from := int(at) % len(wire)
		to := min(from+int(remove), len(wire))
		mutant := slices.Replace(bytes.Clone(wire), from, to, insert...)
		checkMutant(t, wire, mutant)
	})
}

// FuzzParse wants no panic, and no memory beyond the bounds, of whatever comes.
func FuzzParse(f *testing.F) {
	for _, e := range examples {
		f.Add(e.sign(f))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		r, err := received(wire)
		if err != nil {
			return
		}
		if s, err := Parse(r, now, scope); err == nil && (len(s.AccessKeyID) > 128 || s.Until.Before(now)) {
			t.Errorf("accepted %+v", s)
		}
	})
}
