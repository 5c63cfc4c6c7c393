#!/busybox sh
# shellcheck shell=dash
# The first program of the guest that scripts/guest boots: finds the real root and runs the script there.
/busybox mkdir -p /bin /proc /sys /dev /lower /layer /newroot
/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module"
done </modules/order
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose hostroot /lower
mount -t tmpfs -o mode=755 layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work root /newroot
for dir in proc sys dev; do
    mount --move /$dir /newroot/$dir
done
mount -t tmpfs -o mode=755 run /newroot/run
mkdir /newroot/dev/pts /newroot/dev/shm /newroot/run/bin
mount -t devpts devpts /newroot/dev/pts
mount -t tmpfs -o mode=1777 shm /newroot/dev/shm
ln -s /proc/self/fd /newroot/dev/fd
ln -s fd/0 /newroot/dev/stdin
ln -s fd/1 /newroot/dev/stdout
ln -s fd/2 /newroot/dev/stderr
cp /script /newroot/run/script

port() {
    for name in /newroot/sys/class/virtio-ports/*/name; do
        if [ "$(cat "$name")" = "$1" ]; then
            basename "$(dirname "$name")"
            return
        fi
    done
}
output=/dev/$(port output)
status=/dev/$(port status)

cat >/newroot/run/bin/cut-power <<END
#!/bin/bash
echo 137 >$status
echo b >/proc/sysrq-trigger
END
chmod 755 /newroot/run/bin/cut-power
cat >/newroot/run/start <<END
exec </dev/null >$output 2>&1
echo 1 >/proc/sys/kernel/sysrq
(PATH=/usr/sbin:/usr/bin:/sbin:/bin && ip link set lo up)
(. /run/script)
rc=\$?
sync
echo \$rc >$status
echo b >/proc/sysrq-trigger
END
exec switch_root /newroot /bin/bash /run/start
