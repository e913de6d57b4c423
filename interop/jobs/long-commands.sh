#!/bin/bash
# Commands that take long, and memory that is touched for the first time, hold up nobody: the kernel's ib_iser, with a
# keepalive of five seconds, has a whole disk of ours zeroed, which takes no memory, and after a fresh login reads here and
# there from a large one that nobody has written to, writes to it, reads again, and discards it. No ping goes unanswered,
# and the target never has more memory than what was written and ALLOWANCE.
source "$JOBS/prelude.sh"
source "$JOBS/rdma.sh"
need "wire" wire
need "RDMA devices" fabric rxe both
"$RAMDISK" serve --workers 1 --rdma verbs --portal "$IP:$PORT,iser" --target "$IQN" --lun 1536M --lun 8G > target.log 2>&1 &
TARGET_PID=$!
need "serve" eventually 30 listening $PORT
need "initiator" initiator
modprobe ib_iser
found=$(iscsiadm --mode discovery --type sendtargets --portal "$IP:$PORT" 2>&1); echo "$found"
need "record switched to iSER" parameter iface.transport_name iser
keepalive() { parameter 'node.conn[0].timeo.noop_out_interval' 5 && parameter 'node.conn[0].timeo.noop_out_timeout' 5; }
need "impatient keepalive" keepalive
resident() { awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$TARGET_PID/status"; }
no_ping_timeout() { ! { dmesg | grep -iE 'ping timeout|detected conn error'; } }
login() { iscsiadm --mode node --targetname "$IQN" --login && eventually 30 disk_count 2; }
logout() { iscsiadm --mode node --targetname "$IQN" --logout && eventually 20 disk_count 0; }

need "login" login
mapfile -t disk < <(disks)
begin=$(resident)
check "a whole disk is zeroed" blkdiscard -z "${disk[0]}"
# Long enough for a ping that was missed meanwhile to be noticed.
sleep 11
check "zeroing: no ping timeout" no_ping_timeout
check "zeroing: still logged in" operational
note "resident: $begin MiB after login, $(resident) MiB after zeroing 1536 MiB"
check "zeroes take no memory" test "$(resident)" -lt $((begin + 64))
need "logout" logout

need "fresh login" login
mapfile -t disk < <(disks)
# What is written to a session's buffers, and what the device keeps for it.
ALLOWANCE=24
begin=$(resident)
# bounded MEBIBYTES: the target has no more memory than that and ALLOWANCE, besides what it had at the login.
bounded() { local now; now=$(resident); note "resident: $begin MiB, then $now MiB"; test "$now" -le $((begin + $1 + ALLOWANCE)); }
# here_and_there NAME rw: the same 128 places each time.
here_and_there() {
    fio --name="$1" --filename="${disk[1]}" --rw="$2" --bs=4k --number_ios=128 --size=8G --direct=1 --ioengine=libaio \
        --iodepth=16 --randseed=7
}
# through NAME rw MEBIBYTES: from the first block on.
through() {
    fio --name="$1" --filename="${disk[1]}" --rw="$2" --bs=256k --size="$3M" --direct=1 --ioengine=libaio --iodepth=4
}
check "128 random reads" here_and_there reads randread
check "reads take no memory" bounded 0
cat check.log
need "128 random writes" here_and_there writes randwrite
check "128 random reads of what is written" here_and_there reads randread
check "what was written here and there bounds the memory" bounded 1
cat check.log
need "192 MiB are written" through writes write 192
check "192 MiB are read" through reads read 192
check "what was written bounds the memory" bounded 193
cat check.log
check "everything is discarded" blkdiscard "${disk[1]}"
check "discarding gives the memory back" bounded 0
cat check.log
sleep 11
check "reads: no ping timeout" no_ping_timeout
check "reads: still logged in" operational
need "logout at last" logout
check "target ends at Ctrl-C" stop_serving
finish
