#!/bin/sh
# First process of a lab host. It starts in the host's own network, mount, PID, UTS and IPC namespaces, in the host's
# folder (upper, work, root), builds the host's view of the machine and becomes its sshd.
#   $1  host name     $2  1 where user data is to be run on this boot
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

hostname "$1"
# The machine's own system below, what the host writes above: a change here is seen here alone. Relative paths, for a
# comma or a colon in an absolute one would end the option.
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root

mount -t proc -o nosuid,nodev,noexec proc proc
# The kernel's global switches are the machine's, not this host's.
for global in proc/sys proc/sysrq-trigger; do
    [ -e "$global" ] || continue
    mount --bind "$global" "$global"
    mount -o remount,bind,ro "$global"
done
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
mkdir -p run/sshd run/lock run/udev/data

mount -t tmpfs -o mode=755,nosuid,noexec tmpfs dev
mkdir -p dev/pts dev/shm dev/disk/by-id dev/disk/by-uuid
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
ln -s pts/ptmx dev/ptmx
mount -t devpts -o newinstance,nosuid,noexec,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm

# Both names of the root at one place: the old one lies under the new one and goes with the lazy unmount.
pivot_root . .
umount -l .
cd /

if [ "$2" = 1 ]; then
    /var/lib/cloud/instance/user-data.txt >/var/log/cloud-init-output.log 2>&1 </dev/null &
fi

# A host's root may do as it likes with the host, but not set the machine's clock, load modules or make device nodes.
exec setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-mknod,-syslog,-sys_boot \
    "$(command -v sshd)" -D -E /var/log/sshd.log
