// Package architecture holds the tests of the project's structure: which package may
// import which, that what is exported is documented, and that what code and documents
// cite exists. It has no code of its own.
package architecture
