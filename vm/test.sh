#!/usr/bin/env bash
# Runs the root tests in a virtual machine (see vm.sh) and prints their events as
# `go test -json` does. Needs bin/sandboxd.
#
#   vm/test.sh plain|systemd
#   vm/test.sh here             without a machine: this one is it (see Vagrantfile)
#
# VM_RUN, a regular expression, chooses tests; without it run-tests does. Tests named
# TestClient… and TestReal… stay away: they need package registries and what builds
# from them.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../scripts/lib.sh"

exec 2>&1 # gotestsum takes each line of standard error for an error
export VM_TIMEOUT=${VM_TIMEOUT:-2400}
kind=${1:?plain, systemd or here}
payload=$(mktemp -d)
root=/payload # where the machine has it
[ "$kind" != here ] || root=$payload
trap 'rm -rf "$payload"' EXIT

say "collecting the tests"
mkdir -p "$payload"/{bin,packages}
install bin/sandboxd daemon/embedded/sandbox-init "$payload/bin/"
cp -r examples "$payload/"
scripts/test-programs.sh "$payload/programs" fail-points
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$payload/bin/test2json" cmd/test2json
tags=seccomp,integration
[ "$kind" = here ] || tags+=,vm # tests that set the machine's clock
while read -r package; do
	go test -c -trimpath -ldflags '-s -w' -tags "$tags" -o "$payload/packages/${package//\//_}.test" "./$package"
done < <(grep -rl '^//go:build integration' --include='*_test.go' integration isolation/runc | xargs -n1 dirname | sort -u)
pace= # see internal/testtime; emulation is slow
[ "$kind" = here ] || pace='export SANDBOXD_TEST_PATIENCE=5 SANDBOXD_TEST_SHARE=10'
cat >"$payload/environment" <<END
export SANDBOXD=$root/bin/sandboxd SANDBOX_INIT=$root/bin/sandbox-init
export SANDBOXD_TESTBIN=$root/programs SANDBOXD_EXAMPLES=$root/examples
tests='${VM_RUN:-}' limit=$((VM_TIMEOUT / 60 - 2))m
$pace
END
install -m 755 vm/run-tests "$payload/run"

if [ "$kind" = here ]; then
	cd "$payload" && ./run
	exit
fi
say "booting"
vm/vm.sh run "$kind" "$payload"
