// Package integration has no code. The packages below it are the end-to-end tests: the
// built sandboxd, as a user runs it, on real namespaces and cgroups. Each says what of
// sandboxd's promises it tests: containment, lifecycle, recovery, network, images, clients.
// They share internal/harness, and the programs that they run in sandboxes lie beside them.
//
// The tests need root and the build tag "integration". A run reads
//
//	SANDBOXD             the binary under test; default bin/sandboxd
//	SANDBOXD_TESTBIN     a folder with what scripts/test-programs.sh builds; without it
//	                     that is done for each package
//	SANDBOXD_EXAMPLES    the examples folder; default examples
//	SANDBOXD_CLIENTS     official clients, as scripts/clients.sh installs them; default
//	                     .build/clients
//	SANDBOXD_TEST_SHARE  a number: long tests do that part of their rounds
//	SANDBOXD_ATTACK      "whole": attacks are carried out at full length
//
// Every daemon that a test starts has state and run folders of its own, so that tests may
// run beside other daemons of the host. When it has ended, whatever still carries its
// instance id or one of its folders is a leak and fails the test.
package integration
