// Package conformance holds what the conformance suite knows besides its cases: which
// Go tests cover the requirements that a wire test cannot see, which requirements
// sandboxd is known not to meet yet, and what official clients made of it. The program
// is cmd/conformance.
package conformance

import _ "embed"

// Coverage names the tests of each requirement that no case checks, "ID package.Test …"
// a line; the package is its folder in the module.
//
//go:embed coverage.txt
var Coverage string

// Pending names the requirements that sandboxd does not meet yet, "ID reason" a line.
//
//go:embed pending.txt
var Pending string

// Clients is the section of docs/conformance.md with the clients matrix, as
// `conformance clients` wrote it last.
//
//go:embed clients.md
var Clients string
