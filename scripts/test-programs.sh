#!/usr/bin/env bash
# Builds what the end-to-end tests run in sandboxes: the scripted actor, the audit program,
# the echo and the examples, all static; the daemon whose processes are taken over; and, if asked
# for, the builds that have fail-points: of sandboxd, and of the program whose power the
# tests cut. What is up to date stays.
#
#   scripts/test-programs.sh DIR [fail-points]
set -euo pipefail
dir=$(mkdir -p "${1:?DIR}" && cd "$1" && pwd)
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$dir/" \
	./integration/actor ./integration/audit ./integration/echo ./examples/go-echo ./examples/go-sigterm ./examples/extension-go
# The root side of sandboxd, with other unprivileged processes.
go build -trimpath -ldflags '-s -w' -tags seccomp -o "$dir/" ./integration/takeover
case ${2:-} in
'') ;;
fail-points)
	go build -trimpath -ldflags '-s -w' -tags seccomp,failpoint -o "$dir/sandboxd-failpoint" ./cmd/sandboxd
	go build -trimpath -ldflags '-s -w' -tags failpoint -o "$dir/powercut" ./state/powercut
	;;
*) die "unknown: $2; there is fail-points" ;;
esac
