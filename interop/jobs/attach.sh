#!/bin/bash
# The kernel's open-iscsi uses four of our LUNs: discovery, login, disks, a file system, verified random
# I/O, RAID 0 and a linear disk over all four, session shown, logout.
# MODE: plain, chap (both ways) or digests (header and data).
source "$JOBS/prelude.sh"
MODE=${MODE:-plain}
export MDADM_NO_UDEV=1 DM_DISABLE_UDEV=1

chap=
[ "$MODE" != chap ] || chap=chap
need "serve" serve 4 256 $chap
need "initiator" initiator

# Discovery as a person does it; a target that demands CHAP demands it of discovery, too.
find_targets() {
    local record=(iscsiadm --mode discoverydb --type sendtargets --portal "$IP:$PORT")
    if [ "$MODE" != chap ]; then
        iscsiadm --mode discovery --type sendtargets --portal "$IP:$PORT"
        return
    fi
    "${record[@]}" --op new > /dev/null || return
    discovery_parameter authmethod CHAP
    discovery_parameter username "$USER_NAME"
    discovery_parameter password "$SECRET"
    discovery_parameter username_in "$TARGET_USER"
    discovery_parameter password_in "$TARGET_SECRET"
    "${record[@]}" --discover
}
discovery_parameter() {
    "${record[@]}" --op update --name "discovery.sendtargets.auth.$1" --value "$2"
}
if [ "$MODE" = chap ] && [ "${TARGET:-ramdisk}" = ramdisk ]; then
    check "discovery without a secret is refused" eval '! iscsiadm --mode discovery --type sendtargets --portal "$IP:$PORT"'
fi

if [ "$MODE" = digests ]; then
    tcpdump -i lo -B 65536 -s 0 -Z root -w wire.pcap "tcp port $PORT" > tcpdump.log 2>&1 & TCPDUMP=$!
    eventually 20 grep -q 'listening on' tcpdump.log
fi

found=$(find_targets 2>&1); echo "$found"
need "discovery" grep -qxF "$IP:$PORT,1 $IQN" <<< "$found"

if [ "$MODE" = chap ]; then
    parameter node.session.auth.authmethod CHAP
    parameter node.session.auth.username "$USER_NAME"
    parameter node.session.auth.password wrong-secret-0000
    check "a wrong secret is refused" eval '! iscsiadm --mode node --targetname "$IQN" --login && grep -q "uthentication\|uthorization" iscsid.log'
    parameter node.session.auth.password "$SECRET"
    parameter node.session.auth.username_in "$TARGET_USER"
    parameter node.session.auth.password_in wrong-secret-0000
    check "a target with a wrong secret is refused" eval '! iscsiadm --mode node --targetname "$IQN" --login'
    parameter node.session.auth.password_in "$TARGET_SECRET"
    # The kernel logged both refusals as connection errors, rightly.
    dmesg --clear
elif [ "$MODE" = digests ]; then
    parameter 'node.conn[0].iscsi.HeaderDigest' CRC32C
    parameter 'node.conn[0].iscsi.DataDigest' CRC32C
fi
need "login" iscsiadm --mode node --targetname "$IQN" --login
need "four disks" eventually 30 disk_count 4
mapfile -t disk < <(disks)
need "four block devices" eval '[ ${#disk[@]} = 4 ] && for one in "${disk[@]}"; do [ -b "$one" ] || break; done && [ -b "$one" ]'

lsscsi --size
log=$(dmesg | grep -E 'scsi [0-9:]+ Direct|Direct-Access|logical blocks|Write Protect|Write cache|Attached SCSI disk'); echo "$log"
check "kernel log: direct access" grep -qE 'Direct-Access .* PQ: 0 ANSI: [5-9]' <<< "$log"
check "kernel log: size" grep -qE '524288 512-byte logical blocks: \(268 MB/256 MiB\)' <<< "$log"
check "kernel log: write protect off" grep -q 'Write Protect is off' <<< "$log"
check "kernel log: caches" grep -qE 'Write cache: (enabled|disabled), read cache: (enabled|disabled)' <<< "$log"
check "kernel log: attached" test "$(grep -c 'Attached SCSI disk' <<< "$log")" = 4

session=$(iscsiadm --mode session --print 3); echo "$session"
check "session: target" grep -q "Target: $IQN" <<< "$session"
check "session: portal" grep -q "Current Portal: $IP:$PORT,1" <<< "$session"
check "session: transport" grep -q 'Iface Transport: tcp' <<< "$session"
check "session: initiator" grep -q "Iface Initiatorname: $INITIATOR" <<< "$session"
check "session: logged in" grep -q 'iSCSI Session State: LOGGED_IN' <<< "$session"
check "session: disks" test "$(grep -c 'Attached scsi disk .*State: running' <<< "$session")" = 4
case $MODE in
    plain) check "session: negotiated" grep -q 'MaxRecvDataSegmentLength' <<< "$session" ;;
    chap) check "session: CHAP both ways" grep -qzE "username: $USER_NAME.*username_in: $TARGET_USER" <<< "$session" ;;
    digests) check "session: digests" test "$(grep -cE '(Header|Data)Digest: CRC32C' <<< "$session")" = 2 ;;
esac

if [ "$MODE" = digests ]; then
    # Something of both directions and of every size of PDU, then the capture is enough for the host to
    # judge: tshark would take minutes here, and a capture of all that follows would be gigabytes.
    fio --name=wire --filename="${disk[3]}" --rw=randrw --bsrange=512-256k --size=8m --direct=1 --ioengine=libaio --iodepth=8 > fio-wire.log
    # FirstBurstLength is 256 KiB: only what is longer is asked for by R2T and sent in Data-Outs.
    fio --name=long --filename="${disk[3]}" --rw=write --bs=512k --size=4m --direct=1 >> fio-wire.log
    sleep 1; kill -INT $TCPDUMP; wait $TCPDUMP
    check "capture kept" cp wire.pcap /interop/wire.pcap
fi

# A file system: made, filled, and read back after everything cached is dropped.
modprobe ext4; mkdir -p /run/mnt
check "ext4 made" mkfs.ext4 -q -F "${disk[0]}"
need "ext4 mounted" mount -t ext4 "${disk[0]}" /run/mnt
dd if=/dev/urandom of=pattern bs=1M count=25 status=none
# Each file is the pattern from another offset on: a block of one that stands where another's should is seen.
# No process for each small file: a fork is slow in an emulated machine.
STRIDE=4099
fill() {
    local file
    for file in 1 2 3 4 5 6; do
        dd if=pattern of="/run/mnt/file$file" bs=1M count=24 iflag=skip_bytes skip=$((file * STRIDE)) status=none || return
    done
    mkdir /run/mnt/small || return
    for file in {1..300}; do echo "contents of $file" > "/run/mnt/small/$file" || return; done
}
unchanged() {
    local file line
    for file in 1 2 3 4 5 6; do
        cmp --bytes=24M --ignore-initial=$((file * STRIDE)):0 pattern "/run/mnt/file$file" || return
    done
    for file in {1..300}; do
        read -r line < "/run/mnt/small/$file" && [ "$line" = "contents of $file" ] || { echo "small/$file: $line"; return 1; }
    done
}
check "ext4 filled" fill
umount /run/mnt
check "ext4 checked" fsck.ext4 -f -n "${disk[0]}"
echo 3 > /proc/sys/vm/drop_caches
need "ext4 mounted again" mount -t ext4 "${disk[0]}" /run/mnt
check "ext4 unchanged" unchanged
rm -f /run/mnt/file1 /run/mnt/file3
check "fstrim" eval 'said=$(fstrim --verbose /run/mnt); echo "$said"; grep -q trimmed <<< "$said"'
umount /run/mnt

check "fio randrw verify" fio_verify disk "${disk[1]}" 32m

modprobe -a raid0 dm_mod
mdadm --create /dev/md0 --run --force --metadata=1.2 --level=0 --raid-devices=4 --chunk=64 "${disk[@]}" > mdadm.log 2>&1
check "RAID 0 over four LUNs" grep -qE 'md0 : active raid0 .*(\[[0-9]\].*){4}' /proc/mdstat
check "RAID 0 verified" fio_verify raid /dev/md0 32m
check "RAID 0 stopped" mdadm --stop /dev/md0
check "RAID 0 comes back" eval 'mdadm --assemble /dev/md0 --run "${disk[@]}" && mdadm --stop /dev/md0'
for one in "${disk[@]}"; do mdadm --zero-superblock "$one"; done

start=0
for one in "${disk[@]}"; do
    sectors=$(blockdev --getsz "$one"); echo "$start $sectors linear $one 0"; start=$((start + sectors))
done > linear.table
check "dm-linear over four LUNs" dmsetup create linear --noudevrules --noudevsync linear.table
check "dm-linear size" test "$(blockdev --getsz /dev/mapper/linear)" = $((4 * 524288))
# 8 MiB at each seam, so that requests cross from one LUN to the next.
seams() {
    local seam
    [ -b /dev/mapper/linear ] || return
    for seam in 252 508 764; do
        dd if=pattern of=/dev/mapper/linear bs=1M seek=$seam count=8 oflag=direct conv=notrunc status=none || return
        dd if=/dev/mapper/linear bs=1M skip=$seam count=8 iflag=direct status=none | cmp - <(head -c 8M pattern) || return
    done
}
check "dm-linear across the seams" seams
check "dm-linear removed" dmsetup remove --noudevrules --noudevsync linear

check "logout" iscsiadm --mode node --targetname "$IQN" --logout
check "no disk left" eventually 20 disk_count 0
check "no error in the kernel log" eval '! dmesg | grep -E "I/O error|conn error|Sense Key|timed out|BUG:|critical target"'
check "target ends at Ctrl-C" stop_serving
finish
