// Package clients tests that what others have made works unmodified: official runtime
// clients and callers, extensions from public registries, and the project's examples.
//
// Tests named TestClient… need what scripts/clients.sh installs, see SANDBOXD_CLIENTS, and
// are run by `make conformance-clients`; those named TestReal… need cargo, and are run by
// `make extensions`.
package clients
