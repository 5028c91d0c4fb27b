// Package registry is the line between the control process, which is unprivileged and knows
// the functions, and the supervisor, which is root and makes their sandboxes. The control
// process sends requests with a [Client]; the supervisor decides about them in a [Server].
//
// The line is one SOCK_SEQPACKET socket pair that no other process holds. A request has 256
// bytes: numbers, and a revision in the form of message.Revision, which has numbers and
// digests only. The files of trees that the supervisor does not have come with it as open
// files. There is no text and no length, so the supervisor parses nothing, and learns no
// name, handler, variable or secret of a function. If the control process violates the
// protocol, [Server.Serve] returns an error, and the supervisor kills that process.
//
// Both sides speak HTTP over connections that they get by this line ([Client.Connect],
// [Client.Streams]), with the worker at the other end.
package registry
