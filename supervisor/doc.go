// Package supervisor runs processes inside the domains of a sandbox and tells how
// they end (SUP-01 to SUP-22). It knows nothing of Lambda.
package supervisor
