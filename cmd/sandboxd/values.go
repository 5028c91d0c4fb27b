package main

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The types of this file are pflag.Values that refuse what the specification does
// not allow, so that a flag and a line of the configuration file are checked in the
// same place and with the same words.

// intValue is a number within bounds.
type intValue struct {
	n        *int
	min, max int
	unit     string // for messages, with its space: " MB"
}

func (v intValue) String() string { return strconv.Itoa(deref(v.n)) }
func (v intValue) Type() string   { return "int" }
func (v intValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.min || n > v.max {
		return fmt.Errorf("must be a number from %d to %d%s", v.min, v.max, v.unit)
	}
	*v.n = n
	return nil
}

// orZeroValue is an intValue that 0 switches off.
type orZeroValue struct{ intValue }

// Set takes 0 besides what the bounds allow.
func (v orZeroValue) Set(s string) error {
	if s == "0" {
		*v.n = 0
		return nil
	}
	if err := v.intValue.Set(s); err != nil {
		return fmt.Errorf("%w, or 0", err)
	}
	return nil
}

// durationValue is a duration within bounds; a bare number counts as seconds.
type durationValue struct {
	d        *time.Duration
	min, max time.Duration
	whole    bool // whole seconds only
}

func (v durationValue) String() string { return deref(v.d).String() }
func (v durationValue) Type() string   { return "duration" }
func (v durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if n, e := strconv.Atoi(s); e == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < v.min || d > v.max || v.whole && d%time.Second != 0 {
		kind := "a duration such as 3s or 250ms"
		if v.whole {
			kind = "whole seconds such as 3 or 3s"
		}
		return fmt.Errorf("must be %s, from %v to %v", kind, v.min, v.max)
	}
	*v.d = d
	return nil
}

// choiceValue is one of a few words.
type choiceValue struct {
	s       *string
	choices []string
}

func (v choiceValue) String() string { return deref(v.s) }
func (v choiceValue) Type() string   { return strings.Join(v.choices, "|") }
func (v choiceValue) Set(s string) error {
	if !slices.Contains(v.choices, s) {
		return fmt.Errorf("must be %s", strings.Join(v.choices, " or "))
	}
	*v.s = s
	return nil
}

// nameValue is a string of a given form.
type nameValue struct {
	s    *string
	form *regexp.Regexp
	want string // describes the form
}

func (v nameValue) String() string { return deref(v.s) }
func (v nameValue) Type() string   { return "string" }
func (v nameValue) Set(s string) error {
	if !v.form.MatchString(s) {
		return fmt.Errorf("must be %s", v.want)
	}
	*v.s = s
	return nil
}

// addressValue is a TCP address to listen on.
type addressValue struct{ s *string }

func (v addressValue) String() string { return deref(v.s) }
func (v addressValue) Type() string   { return "host:port" }
func (v addressValue) Set(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("must be an address such as 127.0.0.1:9000")
	}
	*v.s = s
	return nil
}

// listValue collects its values, up to a limit.
type listValue struct {
	list *[]string
	max  int
	what string // for messages
}

func (v listValue) String() string { return strings.Join(deref(v.list), ",") }
func (v listValue) Type() string   { return "DIR|ZIP" }
func (v listValue) repeatable()    {}
func (v listValue) Set(s string) error {
	if s == "" {
		return fmt.Errorf("must not be empty")
	}
	if len(*v.list) == v.max {
		return fmt.Errorf("at most %d %s are allowed", v.max, v.what)
	}
	*v.list = append(*v.list, s)
	return nil
}

// boolValue is a switch.
type boolValue struct{ b *bool }

func (v boolValue) String() string { return strconv.FormatBool(deref(v.b)) }
func (v boolValue) Type() string   { return "bool" }
func (v boolValue) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("must be true or false")
	}
	*v.b = b
	return nil
}

// deref is *p, or the zero value: pflag calls String on zero values of the types.
func deref[T any](p *T) (zero T) {
	if p == nil {
		return zero
	}
	return *p
}
