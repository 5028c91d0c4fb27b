#!/usr/bin/env bash
# `sandboxd serve` on real input: a daemon for many functions, driven by curl alone, which
# signs its requests as the AWS SDKs do. Makes a function, invokes it, lists all, updates and
# deletes it, and ends in order. Needs root and bin/sandboxd.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root "the demo"
apt_install zip

demo=$project/.build/demo-serve
port=${DEMO_PORT:-9000}
heading() { printf '\n\033[1m%s\033[0m\n' "== $*"; }

heading "sandboxd serve --listen 127.0.0.1:$port"
rm -rf "$demo"
mkdir -p "$demo"/{run,state}
mkfifo "$demo/log-pipe"
tee "$demo/log" <"$demo/log-pipe" &
tee=$!
bin/sandboxd serve --listen "127.0.0.1:$port" --run-dir "$demo/run" --state-dir "$demo/state" >"$demo/log-pipe" 2>&1 &
daemon=$!
trap 'kill -KILL $daemon 2>/dev/null || true' EXIT

# The daemon is ready when it takes connections; curl asks until then.
curl -s --retry 60 --retry-connrefused --retry-delay 1 --retry-max-time 60 -o /dev/null "http://127.0.0.1:$port/" ||
	die "the daemon does not listen: see its log above"

heading "The first access key, in a file that only root can read"
ls -l "$demo/state/first-key"
# variable NAME: the value of a variable in that file.
variable() { grep -o "$1=[^ ]*" "$demo/state/first-key" | head -n 1 | cut -d = -f 2-; }
url=$(variable AWS_ENDPOINT_URL_LAMBDA)/2015-03-31/functions
(umask 077 && printf 'user = "%s:%s"\n' "$(variable AWS_ACCESS_KEY_ID)" "$(variable AWS_SECRET_ACCESS_KEY)" >"$demo/curl.conf")
# api PATH ARGUMENT…: sends a signed request. The key is in a file, because others see arguments.
api() {
	local path=$1
	shift
	curl -sS --fail-with-body --max-time 60 --noproxy '*' --config "$demo/curl.conf" --aws-sigv4 aws:amz:us-east-1:lambda "$@" "$url$path"
}
# settled: waits until the function is there, and no change of it on its way.
settled() {
	local status
	for _ in {1..100}; do
		status=$(api /hello/configuration)
		case $status in
		*'"State":"Pending"'* | *'"LastUpdateStatus":"InProgress"'*) sleep 0.1 ;;
		*'"State":"Active"'*) return 0 ;;
		*) break ;;
		esac
	done
	die "the function is not ready: $status"
}

heading "CreateFunction: curl --aws-sigv4 aws:amz:us-east-1:lambda …/functions"
(cd examples/shell && zip -q "$demo/hello.zip" bootstrap)
printf '{"FunctionName":"hello","Runtime":"provided.al2023","Handler":"bootstrap","Role":"arn:aws:iam::000000000000:role/none",
	"MemorySize":256,"Timeout":10,"Code":{"ZipFile":"%s"}}' "$(base64 -w 0 "$demo/hello.zip")" >"$demo/create.json"
api "" -H 'Content-Type: application/json' --data-binary "@$demo/create.json"
echo
settled

heading "Invoke, twice"
for i in 1 2; do
	api /hello/invocations -d "{\"hello\":\"world\",\"number\":$i}"
	echo
done

heading "UpdateFunctionConfiguration, and Invoke"
api /hello/configuration -X PUT -H 'Content-Type: application/json' -d '{"Description":"changed","MemorySize":512}' >/dev/null
settled
api /hello/invocations -d '{"hello":"again"}'
echo

heading "ListFunctions"
api /?MaxItems=10
echo

heading "sandboxd ps"
bin/sandboxd ps --run-dir "$demo/run"

heading "DeleteFunction, and an invocation that nothing signs"
api /hello -X DELETE
status=$(curl -s --noproxy '*' -o /dev/null -w '%{http_code}' -d '{}' "$url/hello/invocations")
[ "$status" = 403 ] || die "a request without a signature got $status"
echo "403, as it should be"

heading "SIGTERM"
kill -TERM $daemon
status=0
wait $daemon || status=$?
wait $tee
[ $status = 0 ] || die "sandboxd ended with status $status"
instance=$(grep -o 'instance=[0-9a-f]*' "$demo/log" | head -n 1 | cut -d = -f 2)
left=$(
	find /sys/fs/cgroup -type d -name "*$instance*"
	find "$demo/run" -mindepth 1 -not -name lock
	losetup --list --noheadings --output NAME,BACK-FILE | grep -F "$demo" || true
)
[ -z "$left" ] || die "left behind: $left"
echo "nothing is left; functions and keys are in $demo/state for the next start"
