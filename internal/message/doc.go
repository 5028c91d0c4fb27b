// Package message is what crosses the lines between the processes of a daemon: the
// configuration that the worker starts with, the revisions that root hears of, and the
// kinds of errors. What root reads has a fixed form: there is nothing in it to parse.
package message
