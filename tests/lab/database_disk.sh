#!/bin/bash
# Makes a disk of 160 MB with PostgreSQL's database and pgbench's tables, as postgres-up makes it in a guest, in seconds: the
# image's own programs run in a chroot, the disk being a loop device that they see as /dev/vda. An emulated guest takes
# several minutes for it. Needs root.
# usage: database_disk.sh INITRD DISK
set -euo pipefail
initrd=$1 disk=$2
loop='' root=$(mktemp -d)
chmod 755 "$root" # not everything in there runs as root

# shellcheck disable=SC2317 # a trap calls it
leave() {
    set +e
    chroot "$root" /bin/postgres-up stop >/dev/null 2>&1
    for place in srv dev/shm dev proc; do
        ! mountpoint -q "$root/$place" || umount "$root/$place"
    done
    [ -z "$loop" ] || losetup -d "$loop"
    rm -rf --one-file-system "$root"
}
trap leave EXIT

cpio --quiet -idm -D "$root" <"$initrd"
truncate -s 160M "$disk"
loop=$(losetup -f --show "$disk")
mount -t tmpfs dev "$root/dev"
mount -t proc proc "$root/proc"
mkdir "$root/dev/shm"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 444 "$root/dev/urandom" c 1 9
mknod -m 600 "$root/dev/vda" b $((0x$(stat -c %t "$loop"))) $((0x$(stat -c %T "$loop")))
timeout 120 chroot "$root" /bin/postgres-up
timeout 120 chroot "$root" /bin/postgres-up stop
