package main

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/conformance"
)

// TestEveryRequirementIsCovered is `conformance check` on this tree: every id of the
// specification has a case, or tests that exist, or a reason why it has to wait.
func TestEveryRequirementIsCovered(t *testing.T) {
	wrong, err := uncovered("../../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range wrong {
		t.Error(w)
	}
}

// TestPageHasTheClients: the page of the documentation has the matrix that this program
// would put there.
func TestPageHasTheClients(t *testing.T) {
	page, err := os.ReadFile("../../../" + conformingPage)
	if err != nil {
		t.Fatal(err)
	}
	if conformance.Clients == "" || !strings.Contains(string(page), conformance.Clients) {
		t.Errorf("%s lacks what is in %s: write it anew with `conformance run --markdown`", conformingPage, clientsSection)
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{{"fly"}, {"run", "--nonsense"}, {"run", "x"}, {"check", "--root", "/nonexistent"}, {"clients"}, {"clients", "/nonexistent"}} {
		if err := run(context.Background(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
	var out strings.Builder
	if err := run(context.Background(), []string{"list", "--root", "../../.."}, &out, io.Discard); err != nil || !strings.Contains(out.String(), "RT-07    case") {
		t.Errorf("list: %v, %.200s", err, out.String())
	}
}
