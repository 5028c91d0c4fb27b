#!/usr/bin/env bash
# Runs every fuzz target of the project, one after the other.
#
#   scripts/fuzz.sh TIME      for example 20s
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

grep -rHoE '^func Fuzz[A-Za-z0-9_]*' --include='*_test.go' . | sed 's/:func /:/' | sort |
	while IFS=: read -r file target; do
		go test -tags seccomp -run '^$' -fuzz "^$target\$" -fuzztime "${1:?TIME}" -fuzzminimizetime 2s "$(dirname "$file")"
	done
