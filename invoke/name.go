package invoke

import (
	"context"
	"errors"
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

// A target is the function that a request names.
type target struct {
	name      string
	qualifier string // "" if there is none
	arn       string // as named, with the qualifier; "" if plain
	plain     bool   // the request has a mere name, which is the usual case
	foreign   bool   // it is not of this account
	whole     bool   // the request has function:NAME, which may be the emulator's name with a version
}

// targetOf reads the function of a request (INV-01, INV-19). encoded is a name or one of the
// longer forms of nameForm; the query may have a qualifier too.
func (s *Server) targetOf(encoded string, u *url.URL) (target, *refusal) {
	if u.RawQuery == "" && isPlain(encoded) {
		return target{name: encoded, plain: true}, nil
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
		return target{}, bad
	}
	region := s.cfg.Region
	if m[inRegion] != "" {
		region = strings.TrimSuffix(m[inRegion], ":")
	}
	if region != s.cfg.Region {
		return target{}, &refusal{status: http.StatusNotFound, name: "ResourceNotFoundException",
			text: fmt.Sprintf("Functions from '%s' are not reachable in this region ('%s')", region, s.cfg.Region)}
	}
	t := target{name: m[inName], qualifier: qualifier, whole: m[0] == "function:"+m[inName]}
	switch v := m[inQualifier]; {
	case v == "":
	case qualifier != "" && qualifier != v:
		return target{}, badParameter("The derived qualifier from the function name does not match the specified qualifier.")
	default:
		t.qualifier = v
	}
	own := (m[inARN] == "" || m[inPartition] == "aws") && (m[inAccount] == "" || m[inAccount] == s.cfg.AccountID+":")
	t.foreign = !own
	t.arn = s.arnOf(m) + t.name + t.suffix()
	return t, nil
}

// suffix is what the qualifier adds to an ARN.
func (t *target) suffix() string {
	if t.qualifier == "" {
		return ""
	}
	return ":" + t.qualifier
}

// isPlain reports whether s is the name of a function and needs no decoding.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && c != '-' && c != '_' {
			return false
		}
	}
	return s != ""
}

// fullARN returns the ARN as the request names the function.
func (s *Server) fullARN(t *target) string {
	if t.plain {
		return "arn:aws:lambda:" + s.cfg.Region + ":" + s.cfg.AccountID + ":function:" + t.name
	}
	return t.arn
}

// resolve finds the function of a request, and sets name, qualifier and arn of req.
func (s *Server) resolve(ctx context.Context, req *request, t *target) (Function, error) {
	if t.foreign {
		return Function{}, notFound(t.arn)
	}
	fn, err := s.cfg.Functions.Find(ctx, t.name, t.qualifier)
	if err != nil && t.whole && errors.Is(err, ErrNoFunction) { // the name of AWS's emulator with a version has this form too
		if f, e := s.cfg.Functions.Find(ctx, "function", t.name); e == nil {
			fn, err = f, nil
			t.name, t.qualifier = "function", t.name
		}
	}
	if errors.Is(err, ErrNoFunction) {
		return Function{}, notFound(s.fullARN(t))
	}
	if err != nil {
		return Function{}, err
	}
	req.name, req.qualifier, req.arn = t.name, t.qualifier, fn.ARN+t.suffix()
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
