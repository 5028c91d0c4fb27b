#!/usr/bin/env bash
# Runs the parts of `make test-long` and keeps what became of each, with the commit, in
# .build/results-long/PART: one line "COMMIT DATE SECONDS PASSED FAILED SKIPPED". A part
# that is interrupted has no result. docs/testing.md says what each part is.
#
#   scripts/test-long.sh missing     runs the parts that have no result for this commit
#   scripts/test-long.sh run PART    runs one part, whether it has a result or not
#   scripts/test-long.sh page        writes the results to docs/test-long.md
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

parts=(attack fuzz ledger power serve soak vm-plain vm-systemd)
kept=$project/.build/results-long
longest=$((90 * 60)) # seconds that a part may take

# arguments PART: those of make. Each target ends by itself before the longest time.
arguments() {
	case $1 in
	attack | ledger | power) echo "$1" ;;
	fuzz) echo "fuzz FUZZTIME=10m" ;;
	serve) echo "serve-load" ;;
	soak) echo "soak SOAK_TIMEOUT=85m" ;;
	vm-plain) echo "vm-test VM_RUN=. VM_TIMEOUT=5100" ;;
	vm-systemd) echo "vm-test-systemd VM_RUN=. VM_TIMEOUT=5100" ;;
	*) die "no part $1: there are ${parts[*]}" ;;
	esac
}

# code_commit: the last commit that changed more than documentation, which tests write too.
code_commit() { git log -1 --format=%h -- . ':!docs'; }

# is_changed: there are changes that are in no commit.
is_changed() { [ -n "$(git status --porcelain -- . ':!docs')" ]; }

# has_result PART: there is a result for this very code.
has_result() {
	local commit _
	! is_changed && read -r commit _ 2>/dev/null <"$kept/$1" && [ "$commit" = "$(code_commit)" ]
}

# run PART: runs a part and keeps its result. Fails if a test fails.
run() {
	local part=$1 arguments head commit date began=$SECONDS status=0 summary passed failed skipped took
	arguments=$(arguments "$part")
	head=$(code_commit)
	commit=$head
	! is_changed || commit+=-dirty
	date=$(date -u +%F)
	export RESULTS=$kept/$part.events
	rm -rf "${kept:?}/$part" "$RESULTS"
	mkdir -p "$RESULTS"
	say "$part of $commit begins: make $arguments"
	# shellcheck disable=SC2086 # they are words
	make --no-print-directory $arguments || status=$?
	took=$((SECONDS - began))
	summary=$(scripts/summary.sh) || true
	printf '%s\n' "$summary"
	read -r passed _ failed _ skipped _ < <(tail -n 1 <<<"$summary" | grep ' passed, ') ||
		die "$part: no test ran"
	if [ $status != 0 ] && [ "$failed" = 0 ]; then
		die "$part did not come to its end: it has no result"
	fi
	[ "$head" = "$(code_commit)" ] || die "$part: the code changed meanwhile: it has no result"
	[ $took -le $longest ] || say "$part took more than $((longest / 60)) minutes: divide it"
	echo "$commit $date $took $passed $failed $skipped" >"$kept/$part.partial"
	mv "$kept/$part.partial" "$kept/$part"
	say "$part: $passed passed, $failed failed, $skipped skipped in $((took / 60)) min $((took % 60)) s"
	[ $status = 0 ]
}

# missing: runs what has no result for this commit, all of it even if a part fails.
missing() {
	local part status=0
	for part in "${parts[@]}"; do
		if has_result "$part"; then
			say "$part has a result: $(<"$kept/$part")"
		else
			# A process of its own: what a part sets or ends is not the next one's.
			"$0" run "$part" || status=1
		fi
	done
	exit $status
}

page() {
	local part commit date seconds passed failed skipped
	cat <<'END'
# The long tests

What the last run of each part of `make test-long` gave; [testing.md](testing.md) says what the parts are. Written by
`make test-long-page`.

| part | commit | when | minutes | passed | failed | skipped |
|---|---|---|---|---|---|---|
END
	for part in "${parts[@]}"; do
		if read -r commit date seconds passed failed skipped 2>/dev/null <"$kept/$part"; then
			echo "| $part | $commit | $date | $(((seconds + 59) / 60)) | $passed | $failed | $skipped |"
		else
			echo "| $part | not run | | | | | |"
		fi
	done
}

trap 'exit 130' INT TERM # no result of what was interrupted
case ${1:-} in
missing) missing ;;
run) run "${2:?PART}" ;;
page)
	page >docs/test-long.md.partial
	mv docs/test-long.md.partial docs/test-long.md
	say "wrote docs/test-long.md"
	;;
*) die "usage: test-long.sh missing | run PART | page" ;;
esac
