// Package cli has what several commands share: values of flags that check themselves, and
// the forms of what commands print.
package cli

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// The functions of this file return pflag.Values that refuse what is not allowed, so that a
// flag and a line of the configuration file are checked in the same place and with the
// same words. Each stores what it is set to in its first argument.

// Repeatable is implemented by values that collect what they are set to, one by one: a
// configuration file may give them a list.
type Repeatable interface{ Repeatable() }

// Int is a number from least to most. unit is for messages, with its space: " MB".
func Int(n *int, least, most int, unit string) pflag.Value { return intValue{n, least, most, unit} }

type intValue struct {
	n           *int
	least, most int
	unit        string
}

func (v intValue) String() string { return strconv.Itoa(deref(v.n)) }
func (v intValue) Type() string   { return "int" }
func (v intValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.least || n > v.most {
		return fmt.Errorf("must be a number from %d to %d%s", v.least, v.most, v.unit)
	}
	*v.n = n
	return nil
}

// IntOrZero is Int that takes 0 besides, which switches something off.
func IntOrZero(n *int, least, most int, unit string) pflag.Value {
	return orZeroValue{intValue{n, least, most, unit}}
}

type orZeroValue struct{ intValue }

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

// Duration is a duration from least to most; a bare number counts as seconds.
func Duration(d *time.Duration, least, most time.Duration) pflag.Value {
	return durationValue{d, least, most, false}
}

// Seconds is Duration in whole seconds.
func Seconds(d *time.Duration, least, most time.Duration) pflag.Value {
	return durationValue{d, least, most, true}
}

type durationValue struct {
	d           *time.Duration
	least, most time.Duration
	whole       bool // whole seconds only
}

func (v durationValue) String() string { return deref(v.d).String() }
func (v durationValue) Type() string   { return "duration" }
func (v durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if n, e := strconv.Atoi(s); e == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < v.least || d > v.most || v.whole && d%time.Second != 0 {
		kind := "a duration such as 3s or 250ms"
		if v.whole {
			kind = "whole seconds such as 3 or 3s"
		}
		return fmt.Errorf("must be %s, from %v to %v", kind, v.least, v.most)
	}
	*v.d = d
	return nil
}

// Choice is one of a few words.
func Choice(s *string, choices ...string) pflag.Value { return choiceValue{s, choices} }

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

// Text is a string of a given form, which want describes.
func Text(s *string, form *regexp.Regexp, want string) pflag.Value { return textValue{s, form, want} }

type textValue struct {
	s    *string
	form *regexp.Regexp
	want string
}

func (v textValue) String() string { return deref(v.s) }
func (v textValue) Type() string   { return "string" }
func (v textValue) Set(s string) error {
	if !v.form.MatchString(s) {
		return fmt.Errorf("must be %s", v.want)
	}
	*v.s = s
	return nil
}

// Address is a TCP address to listen on.
func Address(s *string) pflag.Value { return addressValue{s} }

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

// Paths collects paths, at most most of them; what is for messages.
func Paths(list *[]string, most int, what string) pflag.Value { return pathsValue{list, most, what} }

type pathsValue struct {
	list *[]string
	most int
	what string
}

func (v pathsValue) String() string { return strings.Join(deref(v.list), ",") }
func (v pathsValue) Type() string   { return "DIR|ZIP" }
func (v pathsValue) Repeatable()    {}
func (v pathsValue) Set(s string) error {
	if s == "" {
		return fmt.Errorf("must not be empty")
	}
	if len(*v.list) == v.most {
		return fmt.Errorf("at most %d %s are allowed", v.most, v.what)
	}
	*v.list = append(*v.list, s)
	return nil
}

// Parsed collects what parse makes of texts, at most most of them; form describes one.
func Parsed[T fmt.Stringer](list *[]T, parse func(string) (T, error), most int, form string) pflag.Value {
	return parsedValue[T]{list, parse, most, form}
}

type parsedValue[T fmt.Stringer] struct {
	list  *[]T
	parse func(string) (T, error)
	most  int
	form  string
}

func (v parsedValue[T]) Type() string { return v.form }
func (v parsedValue[T]) Repeatable()  {}
func (v parsedValue[T]) String() string {
	var list []string
	for _, r := range deref(v.list) {
		list = append(list, r.String())
	}
	return strings.Join(list, ",")
}

func (v parsedValue[T]) Set(s string) error {
	r, err := v.parse(s)
	if err != nil {
		return err
	}
	if len(*v.list) == v.most {
		return fmt.Errorf("at most %d are allowed", v.most)
	}
	*v.list = append(*v.list, r)
	return nil
}

// Bool is true or false.
func Bool(b *bool) pflag.Value { return boolValue{b} }

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

// Switch defines a flag that takes no value on the command line.
func Switch(f *pflag.FlagSet, b *bool, name, usage string) {
	f.Var(Bool(b), name, usage)
	f.Lookup(name).NoOptDefVal = "true"
}

// deref is *p, or the zero value: pflag calls String on zero values of the types.
func deref[T any](p *T) (zero T) {
	if p == nil {
		return zero
	}
	return *p
}
