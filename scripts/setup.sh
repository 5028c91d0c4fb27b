#!/usr/bin/env bash
# Installs what a step needs and is missing, on Debian 12 or 13 as root. Says nothing
# and needs no root when all is there.
#
#   scripts/setup.sh build     compiler, libseccomp, Go, and what sandboxd itself calls
#   scripts/setup.sh test      build, and what the tests run: shellcheck, strace, PostgreSQL,
#                              Python and Node for functions
#   scripts/setup.sh clients   what the official clients are made and run with: Node,
#                              Python, Java, Ruby, Rust
#   scripts/setup.sh extensions   what the extensions of others are made and run with:
#                              Python, Rust
#   scripts/setup.sh bench     the runtimes that the benchmark compares with
#   scripts/setup.sh audit     the runtimes that make audit compares with
#   scripts/setup.sh vm        qemu and what makes a Debian image
#   scripts/setup.sh vagrant   vagrant, to check the Vagrantfile
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# A Go of this version or later fetches the one that go.mod asks for by itself
# (GOTOOLCHAIN=auto); older ones know nothing of it.
oldest_go=1.21

# has_go: there is a go command that can build the project.
has_go() {
	local version
	version=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || return 1
	printf '%s\n' "$oldest_go" "${version#go}" | sort -V -C
}

# candidate_go COMMAND…: the version of golang-go that apt would install.
candidate_go() { "$@" golang-go 2>/dev/null | sed -n 's/^Version: *\([0-9]*:\)\{0,1\}//p' | head -n 1; }

install_go() {
	has_go && return 0
	local codename version
	need_root "installing Go"
	apt-get -qq update
	version=$(candidate_go apt-cache show --no-all-versions)
	if printf '%s\n' "$oldest_go" "${version:-0}" | sort -V -C; then
		apt_install golang-go
	else
		codename=$(debian_codename)
		[ -n "$codename" ] || die "Go ${version:-none} is too old and this is not Debian: install Go $oldest_go or later by hand"
		say "installing Go from $codename-backports"
		DEBIAN_FRONTEND=noninteractive apt_from "$codename $codename-updates $codename-backports" apt-get -y \
			--no-install-recommends -o Dpkg::Use-Pty=0 -t "$codename-backports" install golang-go >/dev/null
	fi
	has_go || die "Go is still older than $oldest_go: $(go version)"
}

build() {
	apt_install gcc libc6-dev libseccomp-dev pkg-config make git ca-certificates \
		curl e2fsprogs mount util-linux iproute2
	install_go
	go version >/dev/null || die "Go cannot get the version that go.mod asks for"
}

# has_rust VERSION: there is a cargo of that version or a later one, and its compiler.
has_rust() {
	local version
	command -v rustc >/dev/null || return 1
	version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || return 1
	printf '%s\n' "$1" "$version" | sort -V -C
}

# install_rust VERSION: Debian 12 has a newer Rust for its browsers, beside the old one.
install_rust() {
	has_rust "$1" && return 0
	local suffix version
	need_root "installing Rust"
	apt-get -qq update
	for suffix in "" -web; do
		version=$(apt-cache show --no-all-versions "cargo$suffix" 2>/dev/null | sed -n 's/^Version: *//p')
		if printf '%s\n' "$1" "${version:-0}" | sort -V -C; then
			apt_install "cargo$suffix" "rustc$suffix"
			break
		fi
	done
	has_rust "$1" || die "there is no Rust $1 or later, and Debian has none here: install one by rustup"
}

# have_command NAME PACKAGE: installs the package unless the command is there, from
# wherever it came.
have_command() { [ -x "/usr/bin/$1" ] || [ -x "/usr/local/bin/$1" ] || apt_install "$2"; }

# install_postgresql: the programs alone. Debian's package would start a server on this
# host, which nothing of ours uses: the tests start servers of their own.
install_postgresql() {
	compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null && return 0
	need_root "installing PostgreSQL"
	mkdir -p /etc/postgresql-common/createcluster.d
	echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/sandboxd-tests.conf
	apt_install postgresql
}

case ${1:-build} in
build) build ;;
test)
	build
	apt_install shellcheck strace
	have_command python3 python3
	have_command node nodejs
	install_postgresql
	;;
clients)
	have_command node nodejs
	have_command npm npm
	have_command python3 python3
	have_command pip3 python3-pip
	have_command javac default-jdk-headless
	have_command mvn maven
	have_command ruby ruby
	install_rust 1.84 # lambda_runtime
	# aws-lambda-ric for Node compiles its native part with these; boto3 comes into a venv
	apt_install autoconf automake libtool cmake g++ make xz-utils python3-venv
	;;
audit) apt_install runc bubblewrap ;;
vm)
	apt_install mmdebstrap e2fsprogs kmod
	case $(debian_codename) in
	bookworm)
		# qemu 7.2 of bookworm crashes a 6.12 guest at random when it emulates the CPU.
		if [ "$(missing_packages qemu-system-x86)" ]; then
			need_root "installing qemu"
			say "installing qemu from bookworm-backports"
			DEBIAN_FRONTEND=noninteractive apt_from "bookworm bookworm-updates bookworm-backports" apt-get -y \
				--no-install-recommends -o Dpkg::Use-Pty=0 -t bookworm-backports \
				install qemu-system-x86 seabios >/dev/null
		fi
		;;
	*) apt_install qemu-system-x86 seabios ;;
	esac
	;;
bench) apt_install runc crun ;;
extensions)
	have_command python3 python3
	install_rust 1.92 # opentelemetry-lambda-extension
	;;
vagrant) apt_install vagrant ;;
*) die "usage: setup.sh [build|test|clients|extensions|bench|audit|vm|vagrant]" ;;
esac
