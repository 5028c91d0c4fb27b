package lambda

import (
	"net/http"
	"net/url"
	"strings"
)

// route finds the operation of a request and the members that its path has. Parts of paths may
// have escaped slashes, as ARNs of clients have, so it is the path as it was sent that counts.
func (m *model) route(r *http.Request) (*operation, map[string]string, error) {
	parts := strings.Split(strings.Trim(r.URL.EscapedPath(), "/"), "/")
	var found *operation
	for _, o := range m.Operations {
		if o.Method == r.Method && o.fits(parts, r.URL) && (found == nil || o.query != "") {
			found = o
		}
	}
	if found == nil {
		return nil, nil, &Error{Status: http.StatusNotFound, Type: "UnknownOperationException",
			Message: "No operation of the Lambda API has the method " + r.Method + " and this path."}
	}
	path := map[string]string{}
	for i, part := range found.route {
		name, ok := placeholder(part)
		if !ok {
			continue
		}
		value, err := url.PathUnescape(parts[i])
		if err != nil {
			return nil, nil, malformed("The path of the request has a wrong escape")
		}
		path[name] = value
	}
	return found, path, nil
}

// fits reports whether an operation has a path of these parts.
func (o *operation) fits(parts []string, u *url.URL) bool {
	if len(parts) != len(o.route) {
		return false
	}
	for i, part := range o.route {
		_, free := placeholder(part)
		if free && parts[i] == "" || !free && parts[i] != part {
			return false
		}
	}
	if o.query == "" {
		return true
	}
	key, value, _ := strings.Cut(o.query, "=")
	return u.Query().Get(key) == value
}

// placeholder returns the name of a part of a path that is not fixed, such as {FunctionName}.
func placeholder(part string) (string, bool) {
	name, ok := strings.CutPrefix(part, "{")
	return strings.TrimSuffix(strings.TrimSuffix(name, "}"), "+"), ok
}
