// Package lifecycle tests what sandboxd promises of a function's life: how it is configured
// and started, initialized, invoked, frozen, reset and shut down, what its caller, its
// extensions and its logs are told of that, and how the daemon itself is started, asked and
// stopped.
package lifecycle
