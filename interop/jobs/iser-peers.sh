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

# observe NAME COMMAND...: tells how it ended and judges nothing: what libiscsi's iSER does with its suite, which logs in
# anew for each test, and with QEMU's requests against our target is not settled; the README says so.
observe() {
    local name=$1; shift
    if "$@" > observe.log 2>&1; then note "$name passes"; else note "$name does not pass: $(tail -n 3 observe.log | tr '\n' ' ')"; fi
}
# libiscsi NAME URL: what its tools and QEMU's driver do over iSER.
libiscsi() {
    local test
    check "$1: inquiry" ours DIRECT_ACCESS -- iscsi-inq -i "$INITIATOR" "$2"
    check "$1: capacity" ours "Total size:67108864" -- iscsi-readcapacity16 -i "$INITIATOR" "$2"
    check "$1: small random reads" ours "iops average" finished. -- iscsi-perf -i "$INITIATOR" -t 8 -m 32 -b 1 -r "$2"
    check "$1: large sequential reads" ours "iops average" finished. -- iscsi-perf -i "$INITIATOR" -t 8 -m 4 -b 256 "$2"
    for test in SCSI.Read10.Simple SCSI.Write10.Simple SCSI.Write16.Simple; do
        observe "$1: $test" conforms "$test" "$2"
    done
}
conforms() {
    local said
    said=$(timeout 60 iscsi-test-cu -i "$INITIATOR" --dataloss --test "$1" "$2" 2>&1) && grep -qE 'tests +1 +1 +1 +0' <<< "$said" ||
        { echo "$said"; return 1; }
}
if [ "${PROGRAMS:-ours}" = libiscsi ]; then
    libiscsi "libiscsi to LIO" "$LIO_URL"
    libiscsi "libiscsi to tgt" "$TGT_URL"
    finish
fi
initiator_of_ours "ours to LIO" "$LIO_URL" verbs LIO-ORG near_rdma
# tgt's buffers for RDMA hold 512 KiB; a command for more gets no answer.
LARGE=512K initiator_of_ours "ours to tgt" "$TGT_URL" verbs IET near_rdma

PORT=3262 ISER_PORT=3262
need "ours serves" serve_iser verbs 64
libiscsi "libiscsi to ours" "iser://$IP:$PORT/$IQN/0"
qemu_io() { qemu-io -f raw -t none -c "write -P 0x5a 1M 3M" -c "read -P 0x5a 1M 3M" -c "write -P 0xa5 512 512" -c "read -P 0xa5 512 512" "$1"; }
observe "QEMU to ours" ours -- qemu_io "iser://$IP:$PORT/$IQN/0"
initiator_of_ours "ours to ours" "iser://$IP:$PORT/$IQN/0" verbs near_rdma
check "target ends at Ctrl-C" stop_serving
check "no error in the kernel log" eval '! dmesg | grep -E "BUG:|WARNING:|Oops|hung task"'
finish
