#!/bin/bash
# The guest's first process once the host's root is in place: runs the job, leaves its output and its
# exit code in the run directory, powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
source /interop/environment
mount -t tmpfs tmpfs /run
mkdir -p /run/lock/iscsi /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
# There is no udev to make these, which bash's process substitution needs.
ln -sfn /proc/self/fd /dev/fd
# The modules are in the guest's directory on the host, not where modprobe looks.
mkdir -p /lib/modules
ln -sfn "$MODULES" "/lib/modules/$(uname -r)"
ip link set lo up
exec >> /interop/output 2>&1 < /dev/null
echo "guest up: Linux $(uname -r), $(cut -d' ' -f1 /proc/uptime) s after power-on"
mkdir /run/job && cd /run/job && bash "$JOB"
code=$?
sync
echo $code > /interop/code
echo o > /proc/sysrq-trigger
sleep 60
