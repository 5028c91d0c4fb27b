#!/usr/bin/env bash
# Adds up the tests that `make` targets ran, from the events below .build/results, and
# ends with "N passed, N failed, N skipped". Subtests count. Fails if a test failed, or
# if none ran.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# count FILE ACTION: how many tests ended so.
count() { grep -c "\"Action\":\"$2\".*\"Test\":" "$1" || true; }

passed=0 failed=0 skipped=0
for file in .build/results/*.json; do
	[ -e "$file" ] || die "no results: run make unit, or make test"
	p=$(count "$file" pass) f=$(count "$file" fail) s=$(count "$file" skip)
	printf '%-16s %5d passed, %d failed, %d skipped\n' "$(basename "$file" .json)" "$p" "$f" "$s"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
