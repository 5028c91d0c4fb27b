#!/usr/bin/env bash
# A virtual machine with a Debian kernel and pure cgroup v2, for hosts that have
# another kind of cgroups. qemu emulates the CPU (TCG): the same everywhere, no KVM needed.
#
#   vm/vm.sh build KIND       builds kernel and image below .build/vm, unless they are there
#   vm/vm.sh run KIND DIR     runs DIR/run in the machine as root with a copy of DIR as
#                             working directory; passes on its output and exit status
#
# KIND is "plain" (our own small PID 1) or "systemd". VM_MEMORY (MiB, 3072), VM_CPUS (6,
# the most that a function sees) and VM_TIMEOUT (seconds, 2400) bound the machine. A boot that gives no sign of life is
# ended after VM_SIGN seconds (180), and tried once more; scripts/summary.sh says so.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../scripts/lib.sh"

suite=trixie
packages=mount,kmod,procps,iproute2,e2fsprogs,curl,ca-certificates,libseccomp2
[ "$(uname -m)" = x86_64 ] || die "only x86_64 is supported so far"

# image_dir KIND: where this kind's kernel and image are. The name carries a hash of
# this tool and the files it puts in.
image_dir() {
	local inputs
	inputs=$( (echo "$suite $packages" && cat vm/vm.sh vm/guest/*) | sha256sum | cut -c1-12)
	echo "$project/.build/vm/$1-$inputs"
}

# fetch_kernel DIR: unpacks the newest cloud kernel of the suite into DIR and prints its
# release. ext4 and NVMe are built into it, so the machine needs no initramfs.
fetch_kernel() {
	local package
	package=$(apt_from "$suite" apt-cache show --no-all-versions linux-image-cloud-amd64 |
		sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
	[ -n "$package" ] || die "no cloud kernel in $suite"
	mkdir -p "$1"
	(cd "$1" && apt_from "$suite" apt-get download "$package")
	dpkg-deb -x "$1/$package"_*.deb "$1/tree"
	echo "${package#linux-image-}"
}

build() {
	local kind=$1 dir include=$packages work kernel init=/sbin/init
	dir=$(image_dir "$kind")
	[ ! -e "$dir" ] || return 0
	need_root "building a machine image"
	scripts/setup.sh vm
	case $kind in
	plain) init=/usr/local/sbin/vm-init ;;
	systemd) include+=,systemd-sysv,dbus ;;
	*) die "unknown kind of machine $kind: plain or systemd" ;;
	esac
	say "building $kind: kernel and image of Debian $suite"
	rm -rf "$project/.build/vm/$kind"-*
	work=$dir.partial
	mkdir -p "$work"

	kernel=$(fetch_kernel "$work/kernel")
	# shellcheck disable=SC2016 # mmdebstrap expands it
	mmdebstrap --quiet --mode=root --variant=essential --include="$include" \
		--aptopt='Apt::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
		--customize-hook='rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale' \
		"$suite" "$work/root" "$(debian_mirror)"
	cp -a "$work/kernel/tree/usr/lib/modules" "$work/root/usr/lib/"
	depmod -b "$work/root" "$kernel"
	install -m 755 vm/guest/init "$work/root/usr/local/sbin/vm-init"
	install -m 755 vm/guest/run-payload "$work/root/usr/local/sbin/run-payload"
	if [ "$kind" = systemd ]; then
		install -m 644 vm/guest/payload.service "$work/root/etc/systemd/system/payload.service"
		systemctl_offline "$work/root" enable payload.service
		systemctl_offline "$work/root" mask serial-getty@ttyS0.service
	fi
	cp "$work/kernel/tree/boot/vmlinuz-$kernel" "$work/vmlinuz"
	mke2fs -q -t ext4 -O ^has_journal -d "$work/root" "$work/root.ext4" 2G >/dev/null
	echo "$init" >"$work/init"
	rm -rf "$work/root" "$work/kernel"
	mv "$work" "$dir"
	say "built $kind: Linux $kernel, $(du -h "$dir/root.ext4" | cut -f1)"
}

# systemctl_offline ROOT VERB UNIT: makes the links that systemctl would make. The
# host may have no systemctl.
systemctl_offline() {
	local etc=$1/etc/systemd/system
	case $2 in
	enable) mkdir -p "$etc/multi-user.target.wants" && ln -s "../$3" "$etc/multi-user.target.wants/$3" ;;
	mask) ln -s /dev/null "$etc/$3" ;;
	esac
}

# run KIND DIR: boots the machine, once more if the first boot shows no sign of life, and
# ends with the payload's exit status, or 125 if the machine gave none.
run() {
	local kind=$1 payload=$2 status=
	build "$kind"
	machine=$(image_dir "$kind")
	scratch=$(mktemp -d)
	trap clean_up EXIT

	rm -f "$results/vm-$kind.notes"
	mke2fs -q -t ext4 -O ^has_journal -d "$payload" "$scratch/payload.ext4" 1G >/dev/null
	mkfifo "$scratch/log" "$scratch/status" # qemu's own stdio device would close at the end of stdin
	# Opened for reading too: then opening them waits for nobody, and what qemu wrote to
	# the status stays there after its end.
	exec 3<>"$scratch/log" 4<>"$scratch/status"
	cat <"$scratch/log" 3>&- 4>&- &
	if ! boot; then
		note "vm-$kind" "the machine was booted a second time: no sign of life within $sign s"
		boot || die "two boots without a sign of life within $sign s each"
	fi
	status=$(outcome)
	exec 3>&-
	wait
	if [ -z "$status" ]; then
		say "the machine ended without an exit status; the end of its console:"
		tail -n 40 "$scratch/console" >&2
		status=125
	fi
	exit "$status"
}

# sign is how many seconds a machine has from its start to the first word of its payload.
# It needs 5 to 15 on an idle host.
sign=${VM_SIGN:-180}

# boot starts the machine and reports whether it gave a sign of life in time. If it did
# not, the machine is ended and the end of its console shown. A line of the status says
# "up" when the payload begins, "exit N" when it has ended, and "off" when qemu has.
boot() {
	local word=
	(
		timeout -k 5 "${VM_TIMEOUT:-2400}" qemu-system-x86_64 \
			-M q35 -accel tcg,thread=multi -cpu max -smp "${VM_CPUS:-6}" -m "${VM_MEMORY:-3072}" \
			-nodefaults -no-user-config -no-reboot -display none \
			-kernel "$machine/vmlinuz" \
			-append "console=ttyS0 root=/dev/nvme0n1 rootfstype=ext4 rootwait rw init=$(cat "$machine/init") panic=-1 mitigations=off" \
			-serial "file:$scratch/console" \
			-drive "file=$machine/root.ext4,if=none,id=root,format=raw,snapshot=on,cache=unsafe" \
			-device nvme,drive=root,serial=root \
			-drive "file=$scratch/payload.ext4,if=none,id=payload,format=raw,cache=unsafe" \
			-device virtio-blk-pci,drive=payload \
			-device virtio-rng-pci \
			-device virtio-serial-pci \
			-chardev "file,id=log,path=$scratch/log" -device virtserialport,chardev=log,name=log \
			-chardev "file,id=status,path=$scratch/status" -device virtserialport,chardev=status,name=status \
			</dev/null 3>&- 4>&- &
		echo $! >"$scratch/pid"
		wait $! || say "qemu ended with status $?"
		rm -f "$scratch/pid"
		echo off >&4
	) &
	read -r -t "$sign" -u 4 word || true
	[ "$word" != up ] || return 0
	say "no sign of life after at most $sign s; the end of the console:"
	tail -n 40 "$scratch/console" >&2
	if [ "$word" != off ]; then
		end_machine
		read -r -u 4 word # off
	fi
	return 1
}

# outcome waits for the end of the machine and prints the payload's exit status, or nothing.
outcome() {
	local word value=
	while read -r -u 4 word value && [ "$word" != off ]; do
		[ "$word" != exit ] || echo "$value"
	done
}

# end_machine ends qemu if it runs.
end_machine() {
	local pid
	if pid=$(cat "$scratch/pid" 2>/dev/null); then kill "$pid" 2>/dev/null || true; fi
}

clean_up() {
	end_machine
	rm -rf "$scratch"
}

case ${1:-} in
build) build "${2:?KIND}" ;;
run) run "${2:?KIND}" "${3:?DIR}" ;;
*) die "usage: vm/vm.sh build KIND | run KIND DIR" ;;
esac
