#!/usr/bin/env bash
# Adds up the tests that `make` targets ran, from the events below .build/results, and
# ends with "N passed, N failed, N skipped". Subtests count. A test that was run again
# counts as it ended last, and is named. Fails if a test failed, or if none ran.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# outcomes FILE: a line for each test: how it ended, whether it had failed before, and
# its name.
outcomes() {
	awk '
		function member(name) {
			if (!match($0, "\"" name "\":\"[^\"]*")) return ""
			return substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 4)
		}
		/"Action":"(pass|fail|skip)".*"Test":/ {
			test = member("Package") "." member("Test")
			again[test] = again[test] || last[test] == "fail"
			last[test] = member("Action")
		}
		END { for (test in last) print last[test], again[test] ? "again" : "once", test }
	' "$1"
}

passed=0 failed=0 skipped=0
for file in .build/results/*.json; do
	[ -e "$file" ] || die "no results: run make unit, or make test"
	tests=$(outcomes "$file")
	p=$(grep -c '^pass' <<<"$tests" || true) f=$(grep -c '^fail' <<<"$tests" || true) s=$(grep -c '^skip' <<<"$tests" || true)
	printf '%-16s %5d passed, %d failed, %d skipped\n' "$(basename "$file" .json)" "$p" "$f" "$s"
	sed -n 's/^pass again /  failed, and passed when it ran again: /p; s/^fail [a-z]* /  failed: /p' <<<"$tests" | sort
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
