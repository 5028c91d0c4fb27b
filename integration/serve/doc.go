// Package serve tests `sandboxd serve`: what its processes may do, what one of them can do
// when it is taken over, and what happens when one of them dies. Most of its tests use the
// program takeover, whose unprivileged processes do what a test says.
package serve
