#!/usr/bin/env bash
# Builds the tests of packages without cgo and runs them as the user nobody, or as the
# caller if that is not root. Prints the events of `go test -json`.
#
#   scripts/unprivileged-tests.sh PACKAGE…
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

as_nobody=()
[ "$(id -u)" != 0 ] || as_nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs env -u HOME)
failed=0
while read -r package dir; do
	binary=$dir/.unprivileged.test
	CGO_ENABLED=0 go test -c -o "$binary" "$package"
	# By relative paths, since nobody may not enter the folders above, root's home say.
	(cd "$dir" && go tool test2json -t -p "$package" \
		"${as_nobody[@]}" ./.unprivileged.test -test.v=test2json -test.timeout=5m) || failed=1
	rm -f "$binary"
done < <(CGO_ENABLED=0 go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' "$@" | grep .)
exit $failed
