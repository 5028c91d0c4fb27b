// Package architecture holds the tests of the project's structure: which package may
// import which, and that what is exported is documented. It has no code of its own.
package architecture
