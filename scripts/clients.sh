#!/usr/bin/env bash
# Installs the official runtime clients and callers of the clients matrix below
# .build/clients, from the files of integration/clients, all at once, or those named. What is
# there from the same files stays.
#
#   scripts/clients.sh [CLIENT…]
# shellcheck disable=SC2317 # functions are called by name
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

sources=$project/integration/clients
target=$project/.build/clients
MAKEFLAGS=-j$(nproc) # aws-lambda-ric compiles curl
export MAKEFLAGS
mkdir -p "$target"
wanted=" $* "

# client NAME SOURCE… -- COMMAND…: has the files of the SOURCE folders in .build/clients/NAME
# and runs COMMAND there, in the background.
clients=()
client() {
	local name=$1 from=() sum
	shift
	[ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || return 0
	while [ "$1" != -- ]; do
		from+=("$sources/$1")
		shift
	done
	shift
	sum=$(find "${from[@]}" -type f -print0 | sort -z | xargs -0 cat -- "$project/scripts/clients.sh" | sha256sum)
	[ "$(cat "$target/$name.done" 2>/dev/null)" != "$sum" ] || return 0
	say "installing $name"
	rm -f "$target/$name.done"
	mkdir -p "$target/$name"
	for dir in "${from[@]}"; do cp -r "$dir/." "$target/$name/"; done
	(cd "$target/$name" && "$@" && printf '%s\n' "$sum" >"$target/$name.done") >"$target/$name.log" 2>&1 &
	clients+=("$name:$!")
}

npm_install() { npm install --no-audit --no-fund --no-package-lock; }

# node_layer RUNTIME: what a layer of bin/sandboxd has, as if it had been installed here. The
# tests of the matrix are those of the layer then, and the client is compiled once.
node_layer() {
	rm -rf nodejs node_modules
	"$project/bin/sandboxd" layer "$1" --output layer.zip --state-dir "$PWD/state" &&
		/usr/bin/python3 -m zipfile -e layer.zip . &&
		mv nodejs/node_modules . &&
		rm -rf state layer.zip nodejs
}

# Debian's Python, as interpreters outside /usr are not seen in a sandbox.
pip_install() { /usr/bin/python3 -m pip install --quiet --upgrade --target . -r requirements.txt; }

venv() {
	/usr/bin/python3 -m venv venv &&
		venv/bin/python3 -m pip install --quiet -r requirements.txt
}

java() {
	rm -rf lib
	mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib &&
		javac -cp 'lib/*' Handler.java Hooks.java
}

rust() {
	cargo build --quiet &&
		install -D target/debug/function function/bootstrap
}

# vectors keeps AWS's vectors of signatures and nothing else of the crate that has them.
vectors() {
	rm -rf v4
	cargo vendor --quiet &&
		mv vendor/aws-sigv4/aws-signing-test-suite/v4 . &&
		rm -rf vendor
}

client go go -- env CGO_ENABLED=0 go build -trimpath -o bootstrap "$sources/go"
client node3 node -- node_layer nodejs20.x
client node4 node4 node -- npm_install
client node22 node22 -- npm_install
client python python -- pip_install
client java java -- java
client rust rust -- rust
client javascript javascript -- npm_install
client boto3 boto3 -- venv
client webpython webpython -- pip_install
client webnode webnode -- npm_install
client webgo webgo -- env CGO_ENABLED=0 go build -trimpath -o bootstrap "$sources/webgo"
client vectors vectors -- vectors
client sdkpython sdkpython -- pip_install
client sdknode sdknode -- npm_install
client sdkgo sdkgo -- env CGO_ENABLED=0 go build -trimpath -o bootstrap .

status=0
for job in "${clients[@]}"; do
	if wait "${job#*:}"; then
		say "${job%:*} is there"
	else
		status=1
		cat "$target/${job%:*}.log" >&2
		printf '%s: installing %s failed, see above\n' "${0##*/}" "${job%:*}" >&2
	fi
done
exit $status
