#!/bin/bash
# Commands that take long, and memory that is touched for the first time, hold up nobody: the kernel's ib_iser, with a keepalive of
# five seconds, has a whole disk of ours zeroed, which takes no memory, and after a fresh login reads here and there from a large one
# that nobody has written to. No ping goes unanswered.
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
check "128 random reads" fio --name=reads --filename="${disk[1]}" --rw=randread --bs=4k --number_ios=128 --size=8G --direct=1 --ioengine=libaio --iodepth=16
sleep 11
check "reads: no ping timeout" no_ping_timeout
check "reads: still logged in" operational
note "resident: $(resident) MiB after 128 reads of 8 GiB that nobody has written"
need "logout at last" logout
check "target ends at Ctrl-C" stop_serving
finish
