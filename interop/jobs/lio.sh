#!/bin/bash
# Our initiator against LIO, the kernel's target: discover, info, luns, verify and bench, without and with CHAP.
source "$JOBS/prelude.sh"
source "$JOBS/lio-target.sh"
PLAIN=$IQN-plain CHAP=$IQN-chap

# serve_lio IQN PORT [chap]: two RAM disks of 64 MiB.
serve_lio() {
    lio_ready && lio_target "$1" 2 64 "$IP:$2" || return
    [ "${3:-}" != chap ] || lio_chap "$1" || return
    lio_enable "$1"
}
need "LIO serves" serve_lio "$PLAIN" 3260
need "LIO serves with CHAP" serve_lio "$CHAP" 3261 chap

story() {
    local name=$1 portal=$2 iqn=$3 who=$4
    check "$name: discover" ours "$iqn" "$portal" -- "$ISCSI" discover "$portal"
    cat check.log
    check "$name: info" ours LIO-ORG RAMDISK -- "$ISCSI" info "iscsi://$who$portal/$iqn/0"
    cat check.log
    check "$name: luns" ours 0 1 -- "$ISCSI" luns "iscsi://$who$portal/$iqn/0"
    check "$name: verify" ours -- "$ISCSI" verify "iscsi://$who$portal/$iqn/0"
    cat check.log
    check "$name: bench" ours IOPS -- "$ISCSI" bench "iscsi://$who$portal/$iqn/0" --rw randrw --bs 512 --iodepth 32 --runtime 2
    cat check.log
    check "$name: bench over two LUNs" ours IOPS -- "$ISCSI" bench "iscsi://$who$portal/$iqn/0" "iscsi://$who$portal/$iqn/1" \
        --rw randread --bs 4096 --iodepth 32 --runtime 2
}
# The programs can be replaced by libiscsi's, to tell a wrong job from a wrong initiator.
if [ "${INITIATOR_TOOLS:-ours}" = libiscsi ]; then
    check "libiscsi: list" ours "$PLAIN" -- iscsi-ls "iscsi://$IP:3260"
    check "libiscsi: inquiry" ours RAMDISK -- iscsi-inq "iscsi://$USER_NAME%$SECRET@$IP:3261/$CHAP/0"
    check "libiscsi: refused" refused iscsi-inq "iscsi://$USER_NAME%wrong-secret-0000@$IP:3261/$CHAP/0"
    finish
fi
story "plain" "$IP:3260" "$PLAIN" ""
story "chap" "$IP:3261" "$CHAP" "$USER_NAME%$SECRET@"
check "chap: no secret is refused" refused "$ISCSI" info "iscsi://$IP:3261/$CHAP/0"
check "chap: a wrong secret is refused" refused "$ISCSI" info "iscsi://$USER_NAME%wrong-secret-0000@$IP:3261/$CHAP/0"
check "no error in the kernel log" eval '! dmesg | grep -E "BUG:|WARNING:|Oops|hung task"'
finish
