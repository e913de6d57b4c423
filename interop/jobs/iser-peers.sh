#!/bin/bash
# iSER over soft-RoCE with other people's user-space and kernel programs: our initiator to LIO's isert and to tgt,
# libiscsi's to our target. PROGRAMS=libiscsi puts libiscsi before LIO and tgt instead, to tell a wrong job from a wrong
# program of ours.
source "$JOBS/prelude.sh"
source "$JOBS/rdma.sh"
source "$JOBS/lio-target.sh"
LIO_IQN=$IQN-lio TGT_IQN=$IQN-tgt
LIO_URL=iser://$IP:3261/$LIO_IQN/0 TGT_URL=iser://$IP:3260/$TGT_IQN/1

need "wire" wire
need "RDMA devices" fabric rxe both
serve_lio() { lio_ready && lio_target "$LIO_IQN" 1 64 "$IP:3261,iser" && lio_enable "$LIO_IQN"; }
need "LIO serves iSER" serve_lio
need "tgt serves iSER" tgt_iser "$TGT_IQN" 64

# libiscsi NAME URL: its tools and QEMU's driver over iSER, and tests of its suite. Debian 12's libiscsi 1.19 has faults of its own
# there (lib/iser.c), mended in 1.20, that the job keeps away from:
# - iser_reg_mr makes 256 buffers of 256 KiB: longer requests are never sent, and QEMU then tells of a NOP timeout.
# - iscsi_init_iser_transport leaves `struct iser_conn` as malloc gave it, and iser_reg_mr walks a list in it: where a process logs
#   in twice, as each test of the suite does, it may crash. MALLOC_PERTURB_=255 has malloc give zeroes.
# - iser_free_iser_conn_res cancels the thread of the old connection and does not wait for it: its last event may hit the new
#   connection, whose memory is the same. Hence the suite is observed only.
libiscsi() {
    local test
    check "$1: inquiry" ours DIRECT_ACCESS -- iscsi-inq -i "$INITIATOR" "$2"
    check "$1: capacity" ours "Total size:67108864" -- iscsi-readcapacity16 -i "$INITIATOR" "$2"
    check "$1: small random reads" perf -m 32 -b 1 -r "$2"
    check "$1: large sequential reads" perf -m 4 -b 256 "$2"
    check "$1: QEMU, 512 bytes" qemu_io "$2" "write -P 0xa5 512 512" "read -P 0xa5 512 512"
    check "$1: QEMU, 256 KiB" qemu_io "$2" "write -P 0x5a 1M 256k" "read -P 0x5a 1M 256k"
    for test in TestUnitReady.Simple Inquiry.Standard Write16.Simple; do
        observe "$1: $test" conforms "SCSI.$test" "$2"
    done
}
# iscsi-perf looks for the very second in which its own time is over; when it misses that it goes on for ever. A second
# signal has it give up with exit code 1, and `timeout` sends two unless it stays in the foreground.
perf() { ours "iops average" finished. -- timeout --foreground --preserve-status 6 iscsi-perf -i "$INITIATOR" "$@"; }
# observe NAME COMMAND...: tells how it ended, of up to three tries, and judges nothing.
observe() {
    local name=$1 try; shift
    for try in 1 2 3; do
        if "$@" > observe.log 2>&1; then note "$name passes, try $try"; return; fi
    done
    note "$name does not pass: $(grep -v '^ *$' observe.log | tail -n 3 | tr '\n' ' ')"
}
conforms() {
    local said
    said=$(MALLOC_PERTURB_=255 timeout 40 iscsi-test-cu -i "$INITIATOR" --dataloss --test "$1" "$2" 2>&1) && grep -qE 'tests +1 +1 +1 +0' <<< "$said" ||
        { echo "$said"; return 1; }
}
# qemu_io URL COMMAND...
qemu_io() {
    local portal target lun commands=()
    IFS=/ read -r _ _ portal target lun <<< "$1"; shift
    while [ $# -gt 0 ]; do commands+=(-c "$1"); shift; done
    timeout 60 qemu-io "${commands[@]}" --image-opts \
        "driver=raw,cache.direct=on,file.driver=iscsi,file.transport=iser,file.portal=$portal,file.target=$target,file.lun=$lun,file.initiator-name=$INITIATOR"
}
if [ "${PROGRAMS:-ours}" = libiscsi ]; then
    libiscsi "libiscsi to LIO" "$LIO_URL"
    libiscsi "libiscsi to tgt" "$TGT_URL"
    finish
fi
# LIO's isert of Linux 6.12 locks up its kernel when the first command comes before it is ready for one, which it is some
# milliseconds behind its login response ("soft lockup", and no RDMA connection after it): the wire takes its time.
need "slow wire" eval 'modprobe sch_netem && tc qdisc add dev near0 root netem delay 50ms'
initiator_of_ours "ours to LIO" "$LIO_URL" verbs LIO-ORG near_rdma
need "wire as it was" tc qdisc del dev near0 root
check "LIO's kernel lives" eval '! dmesg | grep -E "soft lockup|Oops|BUG:"'
[ $FAILED = 0 ] || finish
# tgt's buffers for RDMA hold 512 KiB; a command for more gets no answer.
LARGE=512K initiator_of_ours "ours to tgt" "$TGT_URL" verbs IET near_rdma

PORT=3262 ISER_PORT=3262
need "ours serves" serve_iser verbs 64
libiscsi "libiscsi to ours" "iser://$IP:$PORT/$IQN/0"
initiator_of_ours "ours to ours" "iser://$IP:$PORT/$IQN/0" verbs near_rdma
check "target ends at Ctrl-C" stop_serving
check "no error in the kernel log" eval '! dmesg | grep -E "BUG:|WARNING:|Oops|hung task"'
finish
