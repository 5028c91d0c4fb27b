package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/sandboxd/sandboxd/conformance"
	"github.com/sandboxd/sandboxd/conformance/cases"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

// copySelf puts a copy of this program into a folder, to be linked to from functions.
func copySelf(dir string) (string, error) {
	const self = "/proc/self/exe"
	f, err := elf.Open(self)
	if err != nil {
		return "", fmt.Errorf("look at this program: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", errors.New("this program is not static, and could not be a function: build it with CGO_ENABLED=0")
		}
	}
	in, err := os.Open(self)
	if err != nil {
		return "", err
	}
	defer in.Close()
	path := filepath.Join(dir, "actor")
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, in)
	return path, errors.Join(err, out.Close())
}

// readSpec reads the specification of the tree at root.
func readSpec(root string) ([]suite.Requirement, error) {
	f, err := os.Open(filepath.Join(root, "docs", "spec", "LAMBDA_ENVIRONMENT.md"))
	if err != nil {
		return nil, fmt.Errorf("%w: run in the project's folder, or name it with --root", err)
	}
	defer f.Close()
	return suite.Requirements(f)
}

// list prints each requirement with what covers it.
func list(args []string, stdout io.Writer) error {
	var f runFlags
	if err := f.parse(args); err != nil {
		return err
	}
	requirements, err := readSpec(f.root)
	if err != nil {
		return err
	}
	coverage, err := suite.Table(conformance.Coverage)
	if err != nil {
		return err
	}
	pending, err := suite.Table(conformance.Pending)
	if err != nil {
		return err
	}
	cased := make(map[string]bool)
	for _, c := range cases.All() {
		cased[c.ID] = true
	}
	for _, r := range requirements {
		by := coverage[r.ID]
		if cased[r.ID] {
			by = "case"
		}
		if reason := pending[r.ID]; reason != "" {
			by += " (pending: " + reason + ")"
		}
		fmt.Fprintf(stdout, "%-8s %s\n", r.ID, by)
	}
	return nil
}

// check compares the specification with cases and tests.
func check(args []string, stdout io.Writer) error {
	var f runFlags
	if err := f.parse(args); err != nil {
		return err
	}
	wrong, err := uncovered(f.root)
	if err != nil {
		return err
	}
	for _, w := range wrong {
		fmt.Fprintln(stdout, w)
	}
	if len(wrong) > 0 {
		return errFailed
	}
	_, err = fmt.Fprintln(stdout, "every requirement has a case, a test, or stands on the pending list")
	return err
}

// uncovered is everything that check complains of in the tree at root.
func uncovered(root string) ([]string, error) {
	requirements, err := readSpec(root)
	if err != nil {
		return nil, err
	}
	coverage, err := suite.Table(conformance.Coverage)
	if err != nil {
		return nil, err
	}
	pending, err := suite.Table(conformance.Pending)
	if err != nil {
		return nil, err
	}
	tests, err := suite.Tests(root)
	if err != nil {
		return nil, err
	}
	return suite.Check(requirements, cases.All(), coverage, pending, tests), nil
}

// The section of the clients matrix as the program has it in it, and the page that it
// is part of, below the root of the tree.
const (
	clientsSection = "conformance/clients.md"
	conformingPage = "docs/conformance.md"
)

// clients writes the clients matrix into the tree, from the events of its tests.
func clients(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("clients takes the file of events of the tests, but got %q", args)
	}
	events, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer events.Close()
	var section strings.Builder
	if err := suite.Matrix(events, &section); err != nil {
		return err
	}
	page, err := os.ReadFile(conformingPage)
	if err != nil {
		return fmt.Errorf("%w: run in the project's folder", err)
	}
	if !strings.Contains(string(page), conformance.Clients) {
		return fmt.Errorf("%s is not of the same run as %s: write it anew with `conformance run --markdown`", conformingPage, clientsSection)
	}
	if err := os.WriteFile(clientsSection, []byte(section.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(conformingPage, []byte(strings.Replace(string(page), conformance.Clients, section.String(), 1)), 0o644)
}
