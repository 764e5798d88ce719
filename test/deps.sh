#!/bin/sh
# Installs from the distribution what crid's tests and demo need and the machine lacks: a runtime, conmon, the
# CNI plugins with iptables, a busybox to make images of, and, except for "deps.sh demo", filesystems, igzip,
# skopeo, and a C compiler, which Go's race detector needs. "deps.sh vm" adds what virtual machines are made with.
set -eu

missing=""
want() { # program package
	for dir in /usr/bin /usr/sbin /bin /sbin /usr/local/bin /usr/local/sbin /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do
		if [ -x "$dir/$1" ]; then return 0; fi
	done
	missing="$missing $2"
}

want crun crun
want runc runc
want conmon conmon
want host-local containernetworking-plugins
want iptables iptables
ldd /bin/busybox >/dev/null 2>&1 || missing="$missing busybox" # busybox-static would not do
if [ "${1:-}" != demo ]; then
	want mkfs.ext4 e2fsprogs
	want mkfs.xfs xfsprogs
	want mkfs.btrfs btrfs-progs
	want gcc gcc
	want igzip isal
	want skopeo skopeo
	[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
fi
if [ "${1:-}" = vm ]; then
	want qemu-system-x86_64 qemu-system-x86
	want debootstrap debootstrap
fi

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "deps.sh: left out without root:$missing; install them, or run as root" >&2
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "deps.sh: no apt-get here; install by hand:$missing" >&2
	exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # one word a package
apt-get install -y -qq --no-install-recommends $missing >/dev/null
