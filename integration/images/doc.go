// Package images tests what sandboxd promises of a function's files: those of zips, layers
// and container images, from a folder or a registry, are where they belong in the sandbox,
// and what an image says of its program, its folder and its variables holds.
package images
