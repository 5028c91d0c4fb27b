#!/usr/bin/env bash
# Runs every fuzz target of the project, three at a time on one thread each, and notes what
# became of them in $RESULTS/fuzz.json (.build/results). An input that fails is kept in the
# target's testdata, and shown.
#
#   scripts/fuzz.sh TIME      of each target, for example 60s
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

mkdir -p "$results"
events=$results/fuzz.json
: >"$events"

# fuzz FOLDER TARGET: runs one and says how far it came.
fuzz() {
	local out action=pass
	out=$(go test -tags seccomp -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 2s -parallel 1 "$1" 2>&1) || action=fail
	# The end of the time can come as this error (golang/go issue 75804); an input that fails
	# is shown as such.
	if [ $action = fail ] && grep -q '^ *context deadline exceeded$' <<<"$out" && ! grep -qE 'Failing input|panic:' <<<"$out"; then
		action=pass
	fi
	printf '{"Action":"%s","Package":"fuzz","Test":"%s.%s"}\n' "$action" "$1" "$2" >>"$events"
	say "$1 $2: $action, $(grep -o 'execs: [0-9]*' <<<"$out" | tail -n 1)"
	[ "$action" = pass ] || printf '%s\n' "$out" >&2
}

time=${1:?TIME}
targets=$(grep -rHoE '^func Fuzz[A-Za-z0-9_]*' --include='*_test.go' . | sort)
say "$(wc -l <<<"$targets") targets, $time each"
while IFS=: read -r file target; do
	while [ "$(jobs -rp | wc -l)" -ge 3 ]; do wait -n; done
	fuzz "$(dirname "$file")" "${target#func }" &
done <<<"$targets"
wait
! grep -q '"fail"' "$events"
