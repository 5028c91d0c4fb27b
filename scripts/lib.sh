# shellcheck shell=bash
# What the project's scripts share. Sourced, never run. It leaves the caller in the
# root of the project.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
project=$PWD

# A Go that was unpacked by hand is often not in a bare PATH. Debian's Go and some
# images refuse a newer toolchain unless told; go.mod names the version that is needed,
# and one that is new enough is used as it is.
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
command -v cargo >/dev/null || PATH=$PATH:${HOME:-/root}/.cargo/bin # as with rustup's
export GOTOOLCHAIN=auto

# say TEXT: a progress line with the time since the script began.
say() { printf '%s [%3ds] %s\n' "${0##*/}:" "$SECONDS" "$*" >&2; }

# The folder where the events of tests go, and what else scripts/summary.sh reads.
results=${RESULTS:-$project/.build/results}

# note PART TEXT: a progress line that scripts/summary.sh repeats below that part.
note() {
	say "$1: $2"
	mkdir -p "$results"
	printf '%s\n' "$2" >>"$results/$1.notes"
}

# die TEXT: says what is wrong and ends the script.
die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# need_root WHY: ends the script unless it runs as root.
need_root() { [ "$(id -u)" = 0 ] || die "$1 needs root: run it as root or with sudo"; }

# debian_codename: the suite of this Debian, for example bookworm.
debian_codename() { (. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}"); }

# missing_packages PACKAGE…: those that are not installed.
missing_packages() {
	local p
	for p; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
	done
}

# apt_install PACKAGE…: installs the missing ones and is silent if there are none.
apt_install() {
	local missing
	mapfile -t missing < <(missing_packages "$@")
	[ ${#missing[@]} -gt 0 ] || return 0
	command -v apt-get >/dev/null || die "missing here: ${missing[*]}; only Debian's apt is known, install their like by hand"
	need_root "installing ${missing[*]}"
	say "installing ${missing[*]}"
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
		-o Dpkg::Use-Pty=0 install "${missing[@]}" >/dev/null
}

# debian_mirror: the archive that this machine's own apt takes Debian from.
debian_mirror() {
	# shellcheck disable=SC2016 # apt expands these
	apt-get indextargets --format '$(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
		awk -v own="$(debian_codename)" '$1 == "main" && $2 == own { print $3; exit }'
}

# apt_from SUITES COMMAND…: runs an apt command that sees these suites of the
# machine's own mirror and no other source. The machine's set-up stays as it is:
# lists and cache live below .build/apt.
apt_from() {
	local suites=$1 cmd=$2 dir=$project/.build/apt/${1// /+} mirror
	shift 2
	mirror=$(debian_mirror)
	[ -n "$mirror" ] || die "apt has no source for Debian main: see /etc/apt/sources.list.d"
	local opts=(-qq -o "Dir::Etc::sourcelist=$dir/list.sources" -o Dir::Etc::sourceparts=-
		-o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root)
	if [ ! -e "$dir/updated" ] || [ -n "$(find "$dir/updated" -mtime +0)" ]; then
		mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
		printf '%s\n' "Types: deb" "URIs: $mirror" "Suites: $suites" "Components: main" \
			"Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" >"$dir/list.sources"
		apt-get "${opts[@]}" update
		touch "$dir/updated"
	fi
	"$cmd" "${opts[@]}" "$@"
}
