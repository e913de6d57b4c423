#!/bin/bash
# needs: siw
# The kernel's ib_iser uses a LUN of ours over soft RDMA: discovery over TCP, the record switched to iSER,
# login, session shown, a file system, verified random I/O, much small and large I/O, ten logins, and a
# wire that is cut while writes go on.
# FABRIC: rxe (soft-RoCE) or siw (soft-iWARP). PROVIDER: verbs (the target uses the RDMA device at its end
# of the wire) or iwarp (it has an ordinary TCP socket, and no RDMA device).
source "$JOBS/prelude.sh"
source "$JOBS/rdma.sh"
FABRIC=${FABRIC:-rxe} PROVIDER=${PROVIDER:-verbs}
case $FABRIC-$PROVIDER in
    *-iwarp) ends=near ;;
    siw-verbs) ends=both ISER_PORT=$((PORT + 1)) ;;
    *) ends=both ;;
esac

need "wire" wire
need "RDMA devices" fabric "$FABRIC" $ends
cat check.log
need "serve" serve_iser "$PROVIDER" 256
need "initiator" initiator
modprobe ib_iser

found=$(iscsiadm --mode discovery --type sendtargets --portal "$IP:$PORT" 2>&1); echo "$found"
need "discovery over TCP" grep -qxF "$IP:$ISER_PORT,1 $IQN" <<< "$found"
# In the record of the portal that takes iSER, and no other.
parameter() { iscsiadm --mode node --targetname "$IQN" --portal "$IP:$ISER_PORT" --op update --name "$1" --value "$2"; }
need "record switched to iSER" parameter iface.transport_name "${TRANSPORT:-iser}"
parameter node.session.queue_depth 128
parameter node.session.cmds_max 256
# keepalive SECONDS: the kernel sends a NOP-Out so often, and waits so long for the answer.
keepalive() { parameter 'node.conn[0].timeo.noop_out_interval' $1 && parameter 'node.conn[0].timeo.noop_out_timeout' $1; }
# Where nothing is cut, a machine with too much to do is no dead one.
check "patient keepalive" keepalive 15
parameter node.session.timeo.replacement_timeout 120
# attached COUNT: so many disks are there by iSCSI, and can be opened. Asked often, so without another process.
attached() {
    local all=(/sys/class/iscsi_session/session*/device/target*/*/block/*) disk
    [ -e "${all[0]}" ] || all=()
    [ ${#all[@]} = "$1" ] || return
    # A disk is listed before it is ready.
    for disk in "${all[@]}"; do true < "/dev/${disk##*/}" || return; done
}
login() { iscsiadm --mode node --targetname "$IQN" --portal "$IP:$ISER_PORT" --login && eventually 30 attached 1; }
logout() { iscsiadm --mode node --targetname "$IQN" --portal "$IP:$ISER_PORT" --logout && eventually 20 attached 0; }
need "login" login
disk=$(disks)
need "a block device" test -b "$disk"

session=$(iscsiadm --mode session --print 3); echo "$session"
check "session: target" grep -q "Target: $IQN" <<< "$session"
check "session: portal" grep -q "Current Portal: $IP:$ISER_PORT,1" <<< "$session"
check "session: iSER" grep -q "Iface Transport: ${TRANSPORT:-iser}" <<< "$session"
check "session: logged in" grep -q 'iSCSI Session State: LOGGED_IN' <<< "$session"
check "session: disk" grep -q 'Attached scsi disk .*State: running' <<< "$session"

modprobe ext4; mkdir -p /run/mnt
check "ext4 made" mkfs.ext4 -q -F "$disk"
need "ext4 mounted" mount -t ext4 "$disk" /run/mnt
dd if=/dev/urandom of=pattern bs=1M count=8 status=none
check "ext4 filled" eval 'for file in 1 2; do dd if=pattern of=/run/mnt/$file bs=1M status=none || exit; done'
umount /run/mnt
check "ext4 checked" fsck.ext4 -f -n "$disk"
echo 3 > /proc/sys/vm/drop_caches
need "ext4 mounted again" mount -t ext4 "$disk" /run/mnt
check "ext4 unchanged" eval 'for file in 1 2; do cmp pattern /run/mnt/$file || exit; done'
umount /run/mnt

check "fio randrw verify" fio_verify disk "$disk" 8m
# load NAME OPTION...: I/O without errors; what it did is printed.
load() {
    fio --name=load --filename="$disk" --direct=1 --ioengine=libaio "$@" > fio-load.log 2>&1 && grep -q 'err= 0' fio-load.log ||
        { cat fio-load.log; return 1; }
}
check "512 bytes at depth 128" load --rw=randrw --bs=512 --iodepth=128 --norandommap --runtime=3 --time_based
grep -E 'IOPS=' fio-load.log
check "large and sequential" load --rw=write --bs=1m --iodepth=4 --size=16m
grep -E 'IOPS=' fio-load.log
check "large and sequential, back" load --rw=read --bs=1m --iodepth=4 --size=16m
grep -E 'IOPS=' fio-load.log

check "no error in the kernel log" eval '! dmesg | grep -E "I/O error|conn error|Sense Key|timed out|BUG:|WARNING:|critical target"'
check "logout" logout
ten_logins() {
    local round
    for round in {1..10}; do
        login && dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct status=none && logout || { echo "in round $round"; return 1; }
    done
}
check "ten logins" ten_logins
# The kernel may call it a connection error when the target, LIO as well, closes before its daemon does after a logout.
check "no I/O error after ten logins" eval '! dmesg | grep -E "I/O error|Sense Key|timed out|BUG:|WARNING:|critical target"'
dmesg --clear

# The cut is to be noticed soon.
check "impatient keepalive" keepalive 2
need "login before the cut" login
disk=$(disks)
# Every block once, at a steady rate, then all of them are read and checked.
fio --name=cut --filename="$disk" --rw=randwrite --bs=4k --size=24m --rate_iops=280 --direct=1 --ioengine=libaio \
    --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 > fio.log 2>&1 &
FIO=$!
check "writes flow" resumes "$disk" 30
check "wire cut" cut_wire
sleep 1
before=$(written "$disk"); sleep 6
check "the cut stops the writes" test "$(($(written "$disk") - before))" -lt 200
check "wire mended" mend_wire
SECONDS_BEFORE=$SECONDS
check "writes resume" resumes "$disk" 60
note "writes resumed $((SECONDS - SECONDS_BEFORE)) s after the wire was whole again"
if [ "$FABRIC" = siw ]; then
    ss -K dst "$IP" dport = $ISER_PORT > /dev/null 2> ss.log || cat ss.log
    check "writes resume after a reset" resumes "$disk" 40
fi
check "session is back" eventually 30 operational
check "the cut was noticed" eval 'dmesg | grep "detected conn error"'
wait $FIO; code=$?
grep -E 'IOPS|clat.*max|err=' fio.log
check "every acknowledged write is there" eval '[ $code = 0 ] && grep -q "err= 0" fio.log || { cat fio.log; false; }'
check "no I/O error reached the disk" eval '! dmesg | grep -E "I/O error, dev|critical target|BUG:|WARNING:"'
check "logout at last" logout
if [ "${TARGET:-ramdisk}" = ramdisk ] && [ "${TRANSPORT:-iser}" = iser ]; then
    url=iser://$IP:$ISER_PORT/$IQN/0
    # The other provider at the initiator's end, where there is one: each must understand the other.
    case $FABRIC-$PROVIDER in
        siw-verbs) initiator_of_ours "our iwarp to our verbs" "$url" iwarp ;;
        siw-iwarp) initiator_of_ours "our verbs to our iwarp" "$url" verbs near_rdma ;;
    esac
fi
[ "${TARGET:-ramdisk}" != ramdisk ] || check "target ends at Ctrl-C" stop_serving
finish
