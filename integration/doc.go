// Package integration holds the end-to-end tests: the built sandboxd, as a user
// runs it, on real namespaces and cgroups. They need root and the build tag
// "integration".
//
//	SANDBOXD             the binary under test; default ../bin/sandboxd
//	SANDBOXD_TESTBIN     a folder with testruntime, testextension and the programs of
//	                     examples; without it they are built
//	SANDBOXD_EXAMPLES    the examples folder; default ../examples
//	SANDBOXD_CLIENTS     official clients, as scripts/clients.sh installs them; default
//	                     ../.build/clients
//
// Only tests named TestClient… need the clients: `make conformance-clients` runs them.
//
// Every daemon that a test starts has state and run folders of its own, so that
// tests may run beside other daemons of the host; when it has ended, whatever still
// carries its instance id or one of its folders is a leak and fails the test.
package integration
