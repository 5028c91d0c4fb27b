package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"

	"github.com/sandboxd/sandboxd/internal/cli"
)

// section is what the configuration file has under one key: a mapping of names, each of which
// has settings of its own. The function makes a new one.
type section func(name string) (settings *pflag.FlagSet, err error)

// applyConfig reads the YAML file at path and sets every flag and setting in it that the
// command line did not set. A key is the name of a flag or of a setting. Repeatable flags
// take a list; env also takes a mapping. The error of a wrong key or value names the key
// and its line.
func applyConfig(path string, flags, settings *pflag.FlagSet) error {
	return applySections(path, flags, settings, nil)
}

// applySections is applyConfig for a file that has sections too.
func applySections(path string, flags, settings *pflag.FlagSet, sections map[string]section) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	defer f.Close()
	if f, err = rereadable(f); err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	defer f.Close()
	var doc yaml.Node
	documents := yaml.NewDecoder(f)
	err = documents.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil // an empty file sets nothing
	}
	if err != nil {
		return fmt.Errorf("--config %s: %w", path, err)
	}
	if err := onlyDocument(documents); err != nil {
		return fmt.Errorf("--config %s%w", path, err)
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return fmt.Errorf("--config %s:%d: must be a mapping of keys to values", path, top.Line)
	}
	seen := map[string]bool{}
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if seen[key.Value] {
			return fmt.Errorf("--config %s:%d: %s is set twice; remove one of the two", path, key.Line, key.Value)
		}
		seen[key.Value] = true
		var err error
		if s := sections[key.Value]; s != nil {
			err = applySection(value, s)
		} else {
			err = applyKey(key.Value, value, flags, settings)
		}
		if err != nil {
			return fmt.Errorf("--config %s:%d: %s: %w", path, key.Line, key.Value, err)
		}
	}
	return nil
}

// applySection sets what a section has.
func applySection(node *yaml.Node, s section) error {
	if node.Kind != yaml.MappingNode {
		return errors.New("must be a mapping of names to settings")
	}
	seen := map[string]bool{}
	for i := 0; i < len(node.Content); i += 2 {
		name, entry := node.Content[i], node.Content[i+1]
		if seen[name.Value] {
			return fmt.Errorf("line %d: %s is there twice; remove one of the two", name.Line, name.Value)
		}
		seen[name.Value] = true
		settings, err := s(name.Value)
		if err != nil {
			return fmt.Errorf("line %d: %q: %w", name.Line, name.Value, err)
		}
		if entry.Tag == "!!null" { // a name with the defaults
			continue
		}
		if entry.Kind == yaml.ScalarNode && settings.Lookup(soleSetting) != nil {
			if err := applyKey(soleSetting, entry, settings, settings); err != nil {
				return fmt.Errorf("line %d: %s: %w", name.Line, name.Value, err)
			}
			continue
		}
		if entry.Kind != yaml.MappingNode {
			return fmt.Errorf("line %d: %s: must be a mapping of settings", name.Line, name.Value)
		}
		set := map[string]bool{}
		for j := 0; j < len(entry.Content); j += 2 {
			key, value := entry.Content[j], entry.Content[j+1]
			if settings.Lookup(key.Value) == nil || set[key.Value] {
				return fmt.Errorf("line %d: %s: %s is no setting of it, or there twice; it has %s", key.Line, name.Value, key.Value, namesOf(settings))
			}
			set[key.Value] = true
			if err := applyKey(key.Value, value, settings, settings); err != nil {
				return fmt.Errorf("line %d: %s: %s: %w", key.Line, name.Value, key.Value, err)
			}
		}
	}
	return nil
}

// namesOf lists the names of settings.
func namesOf(settings *pflag.FlagSet) string {
	var names []string
	settings.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return strings.Join(names, ", ")
}

// descriptorPath is the form of a path that names an open file of the process.
var descriptorPath = regexp.MustCompile(`^(?:/dev/stdin|(?:/dev/fd|/proc/self/fd)/(\d+))$`)

// rereadable returns f, if it can be read more than once: the program executes itself anew
// before it runs, and reads the configuration again for new credentials. What a pipe has,
// such as that of <(command), is moved to a file in memory in its place. f is closed if the
// result is another file.
func rereadable(f *os.File) (_ *os.File, err error) {
	info, err := f.Stat()
	if err != nil || info.Mode().IsRegular() || f.Name() == os.DevNull {
		return f, err
	}
	defer f.Close()
	if info.IsDir() {
		return nil, fmt.Errorf("%s is a directory: name the file in it", f.Name())
	}
	number := descriptorPath.FindStringSubmatch(f.Name())
	if info.Mode()&fs.ModeNamedPipe == 0 || number == nil {
		return nil, fmt.Errorf("%s is not a regular file, and is read more than once: copy it to one that only root can read", f.Name())
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("config", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	memory := os.NewFile(uintptr(fd), f.Name())
	defer memory.Close()
	if _, err := memory.Write(text); err != nil {
		return nil, err
	}
	place, _ := strconv.Atoi(number[1]) // "" is that of /dev/stdin, 0
	if err := unix.Dup3(fd, place, 0); err != nil {
		return nil, os.NewSyscallError("dup3", err)
	}
	return os.Open(f.Name())
}

// onlyDocument returns an error if rest holds another document with content: it would be
// ignored silently. Its text continues the name of the file.
func onlyDocument(rest *yaml.Decoder) error {
	for {
		var next yaml.Node
		err := rest.Decode(&next)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf(": %w", err)
		case next.Content[0].Tag != "!!null":
			return fmt.Errorf(":%d: a second YAML document is not allowed: put all keys into the first one, and remove the line ---", next.Content[0].Line)
		}
	}
}

// applyKey sets the flag or setting that is named key, unless the command line set it.
func applyKey(key string, value *yaml.Node, flags, settings *pflag.FlagSet) error {
	flag := flags.Lookup(key)
	switch {
	case flag == nil:
		flag = settings.Lookup(key)
	case key == "config" || key == "help":
		flag = nil
	case flag.Changed:
		return nil // the command line wins
	}
	if flag == nil {
		return errors.New("unknown key; keys are the names of the command's flags, and what its --help lists")
	}
	list, err := scalars(value, flag.Value)
	if err != nil {
		return err
	}
	for _, s := range list {
		if err := flag.Value.Set(s); err != nil && isSecret(flag.Name) {
			return err
		} else if err != nil {
			return fmt.Errorf("%q %w", s, err)
		}
	}
	return nil
}

// scalars returns the values of a node for the flag value v, in the form that v.Set takes.
func scalars(node *yaml.Node, v pflag.Value) ([]string, error) {
	_, isEnv := v.(envValue)
	_, isList := v.(cli.Repeatable)
	switch {
	case node.Kind == yaml.ScalarNode && node.Tag != "!!null":
		return []string{node.Value}, nil
	case node.Kind == yaml.SequenceNode && (isEnv || isList):
		var list []string
		for _, n := range node.Content {
			if n.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("line %d: must be a single value", n.Line)
			}
			list = append(list, n.Value)
		}
		return list, nil
	case node.Kind == yaml.MappingNode && isEnv:
		var list []string
		for i := 0; i < len(node.Content); i += 2 {
			name, value := node.Content[i], node.Content[i+1]
			if value.Kind != yaml.ScalarNode || strings.Contains(name.Value, "=") {
				return nil, fmt.Errorf("line %d: must be a name with a single value", name.Line)
			}
			list = append(list, name.Value+"="+value.Value)
		}
		return list, nil
	case isEnv:
		return nil, errors.New("must be a mapping, or a list of NAME=VALUE")
	case isList:
		return nil, errors.New("must be a list")
	}
	return nil, errors.New("must be a single value")
}
