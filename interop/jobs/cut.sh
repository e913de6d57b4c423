#!/bin/bash
# The TCP connection between the kernel's initiator and our target is cut while fio writes: by resets
# (ss -K) and by silence (an nftables drop). Every write that was acknowledged must be there afterwards.
source "$JOBS/prelude.sh"
need "serve" serve 1 256
need "initiator" initiator
modprobe -a tcp_diag inet_diag nf_tables nft_ct 2> /dev/null
iscsiadm --mode discovery --type sendtargets --portal "$IP:$PORT"
parameter 'node.conn[0].timeo.noop_out_interval' 2
parameter 'node.conn[0].timeo.noop_out_timeout' 2
parameter node.session.timeo.replacement_timeout 120
need "login" iscsiadm --mode node --targetname "$IQN" --login
need "one disk" eventually 30 disk_count 1
disk=$(disks)

# About 50 s of writes: every block once, at a steady rate, then all of them are read and checked.
fio --name=cut --filename="$disk" --rw=randwrite --bs=4k --size=56m --rate_iops=280 --direct=1 --ioengine=libaio \
    --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 > fio.log 2>&1 &
FIO=$!
check "writes flow" resumes "$disk" 30

for round in 1 2 3; do
    ss -K dst "$IP" dport = $PORT > /dev/null 2> ss.log || cat ss.log
    SECONDS_BEFORE=$SECONDS
    check "reset $round: I/O resumes" resumes "$disk" 40
    note "reset $round: resumed after $((SECONDS - SECONDS_BEFORE)) s"
done
check "resets were noticed" test "$(dmesg | grep -c 'detected conn error')" -ge 3

check "silence begins" nft -f - << RULES
table inet cut {
    chain silence {
        type filter hook input priority 0;
        tcp dport $PORT drop
        tcp sport $PORT drop
    }
}
RULES
sleep 1
before=$(written "$disk"); sleep 8
check "silence stops the writes" test "$(($(written "$disk") - before))" -lt 200
check "silence ends" nft delete table inet cut
SECONDS_BEFORE=$SECONDS
check "silence: I/O resumes" resumes "$disk" 60
note "silence: resumed $((SECONDS - SECONDS_BEFORE)) s after its end"
check "session is back" eventually 30 operational

wait $FIO; code=$?
grep -E 'IOPS|clat.*max|err=' fio.log
check "every acknowledged write is there" eval '[ $code = 0 ] && grep -q "err= 0" fio.log || { cat fio.log; false; }'
check "no I/O error reached the disk" eval '! dmesg | grep -E "I/O error, dev|critical target"'
check "logout" iscsiadm --mode node --targetname "$IQN" --logout
check "target ends at Ctrl-C" stop_serving
finish
