package lambda

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
)

// A validator collects the violations of the constraints of the model, in the words of AWS.
type validator struct {
	m      *model
	faults []string
}

// validate returns the refusal of an input that violates constraints, with all of them.
func (m *model) validate(s *shape, input object) error {
	v := validator{m: m}
	// AWS names what is in the path last.
	for _, uri := range []bool{false, true} {
		for i := range s.Members {
			if (s.Members[i].Location == "uri") == uri {
				v.member(s, &s.Members[i], input, "")
			}
		}
	}
	if len(v.faults) == 0 {
		return nil
	}
	return &Error{Status: http.StatusBadRequest, Type: "ValidationException", Message: violations(v.faults)}
}

// violations makes the message of violations.
func violations(faults []string) string {
	plural := ""
	if len(faults) > 1 {
		plural = "s"
	}
	return fmt.Sprintf("%d validation error%s detected: %s", len(faults), plural, strings.Join(faults, "; "))
}

// violation describes a value that violates a constraint. show is false for what is secret.
func violation(value string, show bool, at, constraint string) string {
	if show {
		value = " " + value
	} else {
		value = ""
	}
	return fmt.Sprintf("Value%s at '%s' failed to satisfy constraint: %s", value, at, constraint)
}

// camel returns the name of a member as messages have it.
func camel(name string) string {
	r := []rune(name)
	for i := range r {
		if i > 0 && i+1 < len(r) && !unicode.IsUpper(r[i+1]) || !unicode.IsUpper(r[i]) {
			break
		}
		r[i] = unicode.ToLower(r[i])
	}
	return string(r)
}

// structure checks the members of a structure.
func (v *validator) structure(s *shape, value object, at string) {
	for i := range s.Members {
		v.member(s, &s.Members[i], value, at)
	}
}

func (v *validator) member(s *shape, m *member, value object, at string) {
	path := camel(m.Name)
	if at != "" {
		path = at + "." + path
	}
	child, ok := value[m.Name]
	if !ok {
		for _, required := range s.Required {
			if required == m.Name {
				v.faults = append(v.faults, violation("null", true, path, "Member must not be null"))
			}
		}
		return
	}
	v.value(v.m.shape(m.Shape), child, path)
}

// value checks a value against its shape.
func (v *validator) value(s *shape, value any, at string) {
	show := !s.Sensitive
	fault := func(constraint string) {
		v.faults = append(v.faults, violation("'"+shown(value)+"'", show, at, constraint))
	}
	for _, c := range s.constraints() {
		if !c.holds(value) {
			fault(c.text)
		}
	}
	switch value := value.(type) {
	case object:
		v.structure(s, value, at)
	case []any:
		show = show && !v.m.shape(s.Member).Sensitive
		v.list(s, value, at, fault)
	case mapping:
		show = show && !v.m.shape(s.Key).Sensitive && !v.m.shape(s.Value).Sensitive
		v.mapping(s, value, at, fault)
	}
}

// list checks the elements of a list. Those that are no structures have one violation together.
func (v *validator) list(s *shape, value []any, at string, fault func(string)) {
	element := v.m.shape(s.Member)
	constraints := element.constraints()
	var texts []string
	for _, c := range constraints {
		texts = append(texts, c.text)
	}
	if nullable := s.Member == "SubnetId" || s.Member == "SecurityGroupId"; !nullable {
		texts = append(texts, "Member must not be null")
	}
	for i, e := range value {
		if o, ok := e.(object); ok {
			v.structure(element, o, fmt.Sprintf("%s.%d.member", at, i+1))
			continue
		}
		if e != nil && element.Type == "structure" {
			continue
		}
		if e == nil || !all(constraints, e) {
			fault("Member must satisfy constraint: [" + strings.Join(texts, ", ") + "]")
			return
		}
	}
}

// mapping checks the keys and values of a map. All keys have one violation together, and all
// values.
func (v *validator) mapping(s *shape, value mapping, at string, fault func(string)) {
	keys, values := v.m.shape(s.Key).constraints(), v.m.shape(s.Value).constraints()
	badKey, badValue := false, false
	for _, p := range value {
		badKey = badKey || !all(keys, p.key)
		badValue = badValue || p.value == nil || !all(values, p.value)
		if o, ok := p.value.(object); ok {
			v.structure(v.m.shape(s.Value), o, at+"."+p.key+".member")
		}
	}
	if badKey {
		fault("Map keys must satisfy constraint: [" + texts(keys) + "]")
	}
	if badValue {
		list := texts(values)
		if list != "" {
			list += ", "
		}
		fault("Map value must satisfy constraint: [" + list + "Member must not be null]")
	}
}

// A constraint is one that a value must satisfy.
type constraint struct {
	text  string
	holds func(value any) bool
}

func all(constraints []constraint, value any) bool {
	for _, c := range constraints {
		if !c.holds(value) {
			return false
		}
	}
	return true
}

func texts(constraints []constraint) string {
	list := make([]string, len(constraints))
	for i, c := range constraints {
		list[i] = c.text
	}
	return strings.Join(list, ", ")
}

// constraints returns the constraints of a shape on its value itself, in AWS's order.
func (s *shape) constraints() []constraint {
	var list []constraint
	add := func(format string, of any, holds func(any) bool) {
		list = append(list, constraint{fmt.Sprintf(format, of), holds})
	}
	switch s.Type {
	case "string", "list", "map", "blob":
		if s.Max != nil {
			add("Member must have length less than or equal to %v", *s.Max, func(v any) bool { return length(v) <= *s.Max })
		}
		if s.Min != nil {
			add("Member must have length greater than or equal to %v", *s.Min, func(v any) bool { return length(v) >= *s.Min })
		}
	case "integer", "long", "float", "double":
		number := func(limit float64) string { return strconv.FormatFloat(limit, 'f', -1, 64) }
		if s.Type == "double" || s.Type == "float" {
			number = javaDouble
		}
		if s.Max != nil {
			add("Member must have value less than or equal to %s", number(*s.Max), func(v any) bool { return size(v) <= *s.Max })
		}
		if s.Min != nil {
			add("Member must have value greater than or equal to %s", number(*s.Min), func(v any) bool { return size(v) >= *s.Min })
		}
	}
	if s.Pattern != "" {
		add("Member must satisfy regular expression pattern: %s", s.Pattern, func(v any) bool {
			text, _ := v.(string)
			return s.matches()(text)
		})
	}
	if len(s.Enum) > 0 {
		add("Member must satisfy enum value set: [%s]", s.allowed, func(v any) bool {
			for _, e := range s.Enum {
				if v == e {
					return true
				}
			}
			return false
		})
	}
	return list
}

// length returns the length of a value as Java counts it.
func length(v any) float64 {
	switch v := v.(type) {
	case string:
		return float64(len(utf16.Encode([]rune(v))))
	case []byte:
		return float64(len(v))
	case []any:
		return float64(len(v))
	case mapping:
		return float64(len(v))
	}
	return 0
}

func size(v any) float64 {
	switch v := v.(type) {
	case int64:
		return float64(v)
	case float64:
		return v
	}
	return math.NaN()
}

// shown returns a value as messages show it.
func shown(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case float64:
		return javaDouble(v)
	case []any:
		list := make([]string, len(v))
		for i := range v {
			list[i] = shown(v[i])
		}
		return "[" + strings.Join(list, ", ") + "]"
	case mapping:
		list := make([]string, len(v))
		for i, p := range v {
			list[i] = p.key + "=" + shown(p.value)
		}
		return "{" + strings.Join(list, ", ") + "}"
	}
	return fmt.Sprint(v)
}

// javaDouble returns a number as Java writes it, with at least one digit after the point.
func javaDouble(f float64) string {
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}
