package invoke

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// The forms of names and qualifiers (INV-01), as refusals quote them.
const (
	nameForm      = `(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?`
	qualifierForm = `\$(LATEST(\.PUBLISHED)?)|[a-zA-Z0-9-_$]+`
	maxQualifier  = 128
)

// Submatches of namePattern that resolve needs.
const (
	inARN       = 1
	inPartition = 2
	inRegion    = 3 // with the colon
	inAccount   = 9 // with the colon
	inFunction  = 10
	inName      = 11
	inQualifier = 13
)

var (
	namePattern      = regexp.MustCompile(`^(?:` + nameForm + `)$`)
	qualifierPattern = regexp.MustCompile(`^(?:` + qualifierForm + `)$`)
)

// resolve finds the function of a request (INV-01, INV-19), and sets name and arn of req.
// encoded is a name or one of the longer forms of nameForm; the query may have a qualifier
// too.
func (s *Server) resolve(req *request, encoded string, u *url.URL) (Function, *refusal) {
	if u.RawQuery == "" { // the usual case
		if fn, ok := s.cfg.Functions.Find(encoded); ok {
			req.name, req.arn = encoded, fn.ARN
			return fn, nil
		}
	}
	full, err := url.PathUnescape(encoded)
	if err != nil { // net/http has refused such a path before
		full = encoded
	}
	qualifier := ""
	if u.RawQuery != "" {
		qualifier = u.Query().Get("Qualifier")
	}
	m := namePattern.FindStringSubmatch(full)
	if bad := invalidName(full, m != nil, qualifier); bad != nil {
		return Function{}, bad
	}
	region := s.cfg.Region
	if m[inRegion] != "" {
		region = strings.TrimSuffix(m[inRegion], ":")
	}
	if region != s.cfg.Region {
		return Function{}, &refusal{status: http.StatusNotFound, name: "ResourceNotFoundException",
			text: fmt.Sprintf("Functions from '%s' are not reachable in this region ('%s')", region, s.cfg.Region)}
	}
	name := m[inName]
	switch v := m[inQualifier]; {
	case v == "":
	case qualifier != "" && qualifier != v:
		return Function{}, badParameter("The derived qualifier from the function name does not match the specified qualifier.")
	default:
		qualifier = v
	}
	fn, known := s.cfg.Functions.Find(name)
	if !known && m[0] == "function:"+name { // the name of AWS's emulator with a version has the form of function:NAME too
		if f, ok := s.cfg.Functions.Find("function"); ok && f.Version == name {
			fn, known, name, qualifier = f, true, "function", name
		}
	}
	suffix := ""
	if qualifier != "" {
		suffix = ":" + qualifier
	}
	own := (m[inARN] == "" || m[inPartition] == "aws") && (m[inAccount] == "" || m[inAccount] == s.cfg.AccountID+":")
	if !own || !known || qualifier != "" && qualifier != "$LATEST" && qualifier != fn.Version {
		return Function{}, notFound(s.arnOf(m) + name + suffix)
	}
	req.name, req.arn = name, fn.ARN+suffix
	return fn, nil
}

// arnOf returns the ARN up to the name, with what the submatches of a name leave out taken from
// the server's functions.
func (s *Server) arnOf(m []string) string {
	partition, account := "aws", s.cfg.AccountID
	if m[inARN] != "" {
		partition = m[inPartition]
	}
	if m[inAccount] != "" {
		account = strings.TrimSuffix(m[inAccount], ":")
	}
	return "arn:" + partition + ":lambda:" + s.cfg.Region + ":" + account + ":function:"
}

// invalidName returns the refusal of a function name or qualifier that does not have its form,
// in the words of Lambda; named says whether the name has. It lists all errors.
func invalidName(name string, named bool, qualifier string) *refusal {
	var errs []string
	fails := func(value, member, constraint string) {
		errs = append(errs, fmt.Sprintf("Value '%s' at '%s' failed to satisfy constraint: Member must %s", value, member, constraint))
	}
	if len(qualifier) > maxQualifier {
		fails(qualifier, "qualifier", fmt.Sprintf("have length less than or equal to %d", maxQualifier))
	}
	if qualifier != "" && !qualifierPattern.MatchString(qualifier) {
		fails(qualifier, "qualifier", "satisfy regular expression pattern: "+qualifierForm)
	}
	if !named {
		fails(name, "functionName", "satisfy regular expression pattern: "+nameForm)
	}
	plural := ""
	switch len(errs) {
	case 0:
		return nil
	case 1:
	default:
		plural = "s"
	}
	return &refusal{status: http.StatusBadRequest, name: "ValidationException",
		text: fmt.Sprintf("%d validation error%s detected: %s", len(errs), plural, strings.Join(errs, "; "))}
}
