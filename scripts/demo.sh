#!/usr/bin/env bash
# The main job on real input: an aws-lambda-go function and an external extension in a
# sandbox, three invocations over HTTP, the log, the isolation in force as the kernel
# tells it, an orderly end, and a check that nothing is left. Needs root and bin/sandboxd.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root "the demo"

demo=$project/.build/demo
port=${DEMO_PORT:-9000}
url=http://127.0.0.1:$port/2015-03-31/functions/function/invocations
heading() { printf '\n\033[1m%s\033[0m\n' "== $*"; }

heading "Building the function and the extension"
rm -rf "$demo"
mkdir -p "$demo"/{function,layer/extensions,run,state}
CGO_ENABLED=0 go build -trimpath -o "$demo/function/bootstrap" ./examples/go-echo
CGO_ENABLED=0 go build -trimpath -o "$demo/layer/extensions/demo-extension" ./examples/extension-go

heading "sandboxd run --layer layer --listen 127.0.0.1:$port function"
mkfifo "$demo/log-pipe"
tee "$demo/log" <"$demo/log-pipe" &
tee=$!
bin/sandboxd run --layer "$demo/layer" --listen "127.0.0.1:$port" \
	--run-dir "$demo/run" --state-dir "$demo/state" "$demo/function" >"$demo/log-pipe" 2>&1 &
daemon=$!
trap 'kill -KILL $daemon 2>/dev/null || true' EXIT

# The daemon is ready when it takes connections; curl asks until then.
curl -s --retry 60 --retry-connrefused --retry-delay 1 --retry-max-time 60 -o /dev/null "http://127.0.0.1:$port/" ||
	die "the daemon does not listen: see its log above"

heading "Three invocations"
for i in 1 2 3; do
	printf '%s\n' "$(curl -sS --fail-with-body --max-time 30 -d "{\"hello\":\"world\",\"number\":$i}" "$url")"
done

heading "sandboxd ps"
bin/sandboxd ps --run-dir "$demo/run" | tee "$demo/ps"
read -r sandbox _ < <(sed -n 2p "$demo/ps")
[ -n "${sandbox:-}" ] || die "ps lists no sandbox"

heading "sandboxd inspect $sandbox"
bin/sandboxd inspect --run-dir "$demo/run" "$sandbox"

# What must be gone afterwards: the sandbox's processes, and all that their namespaces
# and cgroups are.
mapfile -t cgroups < <(find /sys/fs/cgroup -type d -name "*$sandbox*")
[ ${#cgroups[@]} -gt 0 ] || die "no cgroup carries the sandbox's id"
mapfile -t pids < <(find "${cgroups[@]}" -name cgroup.procs -exec cat {} + | sort -un | grep -v '^0$')
[ ${#pids[@]} -gt 1 ] || die "no process is in the sandbox's cgroups"
namespaces=$demo/namespaces
for pid in "${pids[@]}"; do readlink "/proc/$pid"/ns/*; done | sort -u >"$namespaces.sandbox"
readlink /proc/self/ns/* | sort -u >"$namespaces.host"
comm -23 "$namespaces.sandbox" "$namespaces.host" >"$namespaces"

heading "SIGTERM"
kill -TERM $daemon
status=0
wait $daemon || status=$?
wait $tee
[ $status = 0 ] || die "sandboxd ended with status $status"

heading "What is left"
left=0
# gone WHAT LINES: fails unless there are no lines.
gone() {
	if [ -n "$2" ]; then
		printf 'LEFT: %s\n%s\n' "$1" "$2"
		left=1
	else
		echo "none: $1"
	fi
}
gone "processes of the sandbox (${#pids[@]} before)" "$(for p in "${pids[@]}"; do [ ! -e "/proc/$p" ] || echo "$p"; done)"
gone "cgroups (${#cgroups[@]} before)" "$(find /sys/fs/cgroup -type d -name "*$sandbox*")"
gone "namespaces ($(wc -l <"$namespaces") before)" \
	"$( (readlink /proc/[0-9]*/ns/* /proc/[0-9]*/task/[0-9]*/ns/* 2>/dev/null || true) | sort -u | comm -12 - "$namespaces")"
gone "mounts" "$(cat /proc/[0-9]*/mountinfo 2>/dev/null | grep -F -e "$sandbox" -e "$demo" | sort -u)"
gone "loop devices" "$(losetup --list --noheadings --output NAME,BACK-FILE | grep -F -e "$sandbox" -e "$demo")"
gone "sockets and state of the daemon" "$(find "$demo/run" -mindepth 1 -not -name lock)"
[ $left = 0 ] || die "the sandbox left something behind"
