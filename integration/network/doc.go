// Package network tests what sandboxd promises of a sandbox's way to the network: with
// egress it reaches the addresses and names that are allowed and nothing else, after the
// daemon is killed too, and nothing of it is left on the host.
package network
