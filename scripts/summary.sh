#!/usr/bin/env bash
# Adds up the tests that `make` targets ran, from the events below .build/results, and
# ends with "N passed, N failed, N skipped". Subtests count. What a part noted, a second
# boot for example, is repeated below it. Fails if a test failed, if none ran, or if one
# was skipped that scripts/skips.txt does not expect to be.
#
#   scripts/summary.sh [RESULTS [SKIPS]]
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

results=${1:-$results} skips=${2:-scripts/skips.txt}

# outcomes FILE: a line for each test: how it ended, its name, and of a skipped one the
# feature that the host lacks, or "-".
outcomes() {
	awk '
		function member(name) {
			if (!match($0, "\"" name "\":\"[^\"]*")) return ""
			return substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 4)
		}
		/"Action":"(pass|fail|skip)".*"Test":/ { ended[member("Package") " " member("Test")] = member("Action") }
		/"Action":"output".*"Test":/ && match($0, /: host lacks [a-z0-9-]+:/) { # see host/hosttest
			feature = substr($0, RSTART + 13, RLENGTH - 14) # before member matches anew
			lacks[member("Package") " " member("Test")] = feature
		}
		END {
			for (test in ended) print ended[test], test, test in lacks ? lacks[test] : "-"
		}
	' "$1"
}

passed=0 failed=0 skipped=0 unexpected=0
for file in "$results"/*.json; do
	[ -e "$file" ] || die "no results: run make unit, or make test"
	part=$(basename "$file" .json)
	tests=$(outcomes "$file")
	p=$(grep -c '^pass' <<<"$tests" || true) f=$(grep -c '^fail' <<<"$tests" || true) s=$(grep -c '^skip' <<<"$tests" || true)
	printf '%-16s %5d passed, %d failed, %d skipped\n' "$part" "$p" "$f" "$s"
	sed -En 's/^fail (\S+) (\S+) .*/  failed: \1.\2/p' <<<"$tests" | sort
	others=$(sed -n 's/^skip //p' <<<"$tests" | sort | grep -vxFf <(sed 's/#.*//; /^ *$/d' "$skips") || true)
	if [ -n "$others" ]; then
		sed -E 's/(\S+) (\S+) (.*)/  skipped, and not expected to be: \1.\2 (the host lacks \3)/' <<<"$others"
		unexpected=$((unexpected + $(wc -l <<<"$others")))
	fi
	[ ! -e "$results/$part.notes" ] || sed 's/^/  /' "$results/$part.notes"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
[ "$unexpected" = 0 ] || echo "$unexpected skipped without being expected: see scripts/skips.txt"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ] && [ "$unexpected" = 0 ]
