// Package containment tests what sandboxd promises of isolation: a function keeps to its
// sandbox. It sees, reaches and changes nothing of the host, of the daemon or of another
// sandbox, uses up no more than it was given, and whatever attacks the daemon from inside,
// over the Runtime API or with what it is given to run, gets nowhere. Each attack has a
// control that succeeds where there is no defence.
package containment
