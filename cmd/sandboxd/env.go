package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/function"
)

// envValue is a flag value that collects environment variables from NAME=VALUE. It
// implements pflag.Value.
type envValue struct{ env *map[string]string }

func (v envValue) Type() string { return "K=V" }

func (v envValue) String() string {
	if v.env == nil { // pflag calls String on zero values too
		return ""
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(*v.env)) {
		list = append(list, name+"="+(*v.env)[name])
	}
	return strings.Join(list, ",")
}

func (v envValue) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("must have the form NAME=VALUE")
	}
	if err := function.CheckVariable(name, value); err != nil {
		return err
	}
	if *v.env == nil {
		*v.env = map[string]string{}
	}
	(*v.env)[name] = value
	return function.CheckEnv(*v.env)
}
