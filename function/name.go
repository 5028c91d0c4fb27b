package function

import (
	"regexp"
	"strings"
)

// NamePattern is the form in which requests name a function (INV-01): its name, or a part of
// its ARN or the whole of it, with or without a qualifier.
const NamePattern = `(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?`

var namePattern = regexp.MustCompile(`^(?:` + NamePattern + `)$`)

// A Reference is how a request names a function. What the request leaves out is "".
type Reference struct {
	Partition string // "aws" for example; only an ARN has one
	Region    string
	Account   string
	Name      string
	Qualifier string
}

// ParseReference takes a text of the form of [NamePattern] apart, and reports whether it has
// that form.
func ParseReference(text string) (ref Reference, ok bool) {
	m := namePattern.FindStringSubmatch(text)
	if m == nil {
		return Reference{}, false
	}
	return Reference{
		Partition: m[2],
		Region:    strings.TrimSuffix(m[3], ":"),
		Account:   strings.TrimSuffix(m[9], ":"),
		Name:      m[11],
		Qualifier: m[13],
	}, true
}
