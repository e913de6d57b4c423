#!/bin/bash
# `iscsi copy` with block devices at its ends: loop devices with blocks of 512 and 4096 bytes, and a disk of the kernel's
# initiator. What is in use, too small, too large or the same is refused before anything is written.
source "$JOBS/prelude.sh"
MEBIBYTES=24
URL=iscsi://$IP:$PORT/$IQN
need "serve" serve 2 $MEBIBYTES
modprobe -a loop || finish

# image FILE: data, a run of zeroes in the midst, a hole, and data in the last block.
image() {
    dd if=/dev/urandom of="$1" bs=1M count=4 && dd if=/dev/zero of="$1" bs=1M count=3 seek=4 conv=notrunc &&
        dd if=/dev/urandom of="$1" bs=1000 count=500 seek=9000 conv=notrunc && truncate -s ${MEBIBYTES}M "$1" &&
        dd if=/dev/urandom of="$1" bs=4096 count=1 seek=$((MEBIBYTES * 256 - 1)) conv=notrunc
}
# full FILE MEBIBYTES: data everywhere, none of them zeroes.
full() { tr '\0' x < /dev/urandom | head -c "$2M" > "$1"; }
device() { losetup --find --show --sector-size "$1" "$2"; }
need "an image" image image
need "destinations with other data" eval "full small-blocks $MEBIBYTES && full large-blocks $((MEBIBYTES + 1)) && full short 8"
cp large-blocks large-before
source=$(device 512 image) to512=$(device 512 small-blocks) to4096=$(device 4096 large-blocks) short=$(device 512 short)
need "loop devices" test -b "$source" -a -b "$to512" -a -b "$to4096" -a -b "$short"
copy() { "$ISCSI" --initiator "$INITIATOR" copy "$@"; }

check "a device onto a disk" copy "$source" "$URL/0" --verify
cat check.log
check "a disk onto a device" copy "$URL/0" "$to512" --verify
check "the device has all of it" cmp image small-blocks
check "a disk onto a device of large blocks" copy "$URL/0" "$to4096" --verify --bs 64K
check "that one has it, too" cmp --bytes=${MEBIBYTES}M image large-blocks
check "and behind it what it had" cmp --ignore-initial=${MEBIBYTES}M large-before large-blocks
full small-blocks $MEBIBYTES
check "a device onto a device" copy "$source" "$to512" --verify
check "which has all of it" cmp image small-blocks
full small-blocks $MEBIBYTES
check "a pipe onto a device" eval 'copy - "$to512" < image && cmp image small-blocks'
check "a device onto a pipe" eval 'copy "$to512" - > piped && cmp image piped'
check "a device onto a file" eval 'copy "$to512" file --verify && cmp image file'

# refuses NAME WORDS ARGUMENT...: with those words, and without a byte written to what is short.
refuses() {
    local name=$1 words=$2 before
    shift 2
    before=$(md5sum < short)
    check "$name is refused" refused "$ISCSI" --initiator "$INITIATOR" copy "$@"
    cp check.log refused.log
    check "$name: the reason" eval 'grep -F "$words" refused.log || { cat refused.log; false; }'
    check "$name: nothing is written" test "$before" = "$(md5sum < short)"
}
refuses "a device that is too small" "holds 8.0 MiB, which is less" "$source" "$short"
refuses "a device onto itself" "are the same" "$short" "$short"
mknod other-name b "$((0x$(stat -c %t "$short")))" "$((0x$(stat -c %T "$short")))"
refuses "a device onto itself by another name" "are the same" other-name "$short"
check "a file system on it" eval 'mkfs.ext4 -q "$short" && mkdir mounted && mount "$short" mounted && sync'
full little 1
refuses "a mounted device" "is in use" little "$short"
check "unmounted" umount mounted
losetup --detach "$short"; short=$(losetup --find --show --read-only short)
refuses "a device that can only be read" "$short" little "$short"

# A disk of the kernel's over our target: what is durable there shows by another session.
need "initiator" initiator
iscsiadm --mode discovery --type sendtargets --portal "$IP:$PORT"
need "login" iscsiadm --mode node --targetname "$IQN" --login
need "two disks" eventually 30 disk_count 2
second=$(disks | tail -n 1)
check "a device onto the kernel's disk" copy "$source" "$second" --verify
check "the target has it" eval 'copy "$URL/1" back && cmp image back'
check "the kernel's disk onto a file" eval 'copy "$second" from-kernel --verify && cmp image from-kernel'
check "logout" iscsiadm --mode node --targetname "$IQN" --logout
check "no I/O error reached a device" eval '! dmesg | grep -E "I/O error, dev|critical target"'
check "target ends at Ctrl-C" stop_serving
finish
