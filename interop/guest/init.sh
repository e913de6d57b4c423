#!/bin/sh
# The initrd's init: mounts the host's root read-only, lays a writable tmpfs over it, and makes it the root.
# The run directory, which the host shares for this boot, is mounted at /interop.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    insmod "$module" || echo "init: cannot load $module"
done
share=trans=virtio,version=9p2000.L,msize=500000
# The host's files do not change while a job runs, so the guest may cache them freely.
mount -t 9p -o "$share,cache=loose,ro" host /host || exec sh
mount -t tmpfs -o size=50% tmpfs /overlay
mkdir /overlay/upper /overlay/work
mount -t overlay -o lowerdir=/host,upperdir=/overlay/upper,workdir=/overlay/work overlay /newroot || exec sh
mkdir -p /newroot/proc /newroot/sys /newroot/dev /newroot/interop
# No cache here: the host reads what the job wrote even when the guest's kernel dies.
mount -t 9p -o "$share,cache=none" run /newroot/interop || exec sh
mount --move /dev /newroot/dev
mount -t proc proc /newroot/proc
mount -t sysfs sysfs /newroot/sys
exec switch_root /newroot /bin/bash /interop/first-process
