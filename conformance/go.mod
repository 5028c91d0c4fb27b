// The conformance suite is a module of its own: it knows a Lambda environment over the
// wire only, imports nothing of sandboxd and needs the standard library alone.
module github.com/sandboxd/sandboxd/conformance

go 1.26.1
