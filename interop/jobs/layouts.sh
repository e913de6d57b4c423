#!/bin/bash
# needs: siw
# The layouts of a remote RAM disk, LIO's and ours in turn in the same boot, under the kernel's ib_iser and fio: one
# LUN, two LUNs of a target, two portals with a LUN each, four targets with a LUN each. Prints a table of medians in
# Markdown. Only the ratios mean something here.
# FABRIC and PROVIDER as for iser.sh; LINK=loopback instead of the wire leaves IP out, which only soft-RoCE can;
# TRANSPORT=tcp compares over TCP; TARGET=lio compares LIO with itself, to see the noise. RUNTIME seconds and ROUNDS of
# each measurement, SIZES of requests.
source "$JOBS/prelude.sh"
source "$JOBS/rdma.sh"
source "$JOBS/lio-target.sh"
FABRIC=${FABRIC:-rxe} PROVIDER=${PROVIDER:-verbs} TRANSPORT=${TRANSPORT:-iser}
RUNTIME=${RUNTIME:-4} ROUNDS=${ROUNDS:-3} SIZES=${SIZES:-512} MEBIBYTES=64
ACCESSES=${ACCESSES:-randread randwrite}
[ "$TRANSPORT" = iser ] && iser=,iser || iser=

# The name of target node NUMBER of lio or ours.
name() { echo "iqn.2026-01.org.example:$1-$2"; }
# A portal of lio or ours, the first or the second.
portal() { case $1 in lio) echo "$IP:$((3260 + $2))" ;; ours) echo "$IP:$((3270 + $2))" ;; esac; }
# How many LUNs each target node has: the first has two, and serves three of the layouts.
luns() { [ "$1" = 1 ] && echo 2 || echo 1; }

serve_lio() {
    local node
    lio_ready || return
    for node in 1 2 3 4; do
        lio_target "$(name $1 $node)" "$(luns $node)" $MEBIBYTES "$(portal $1 0)$iser" "$(portal $1 1)$iser" || return
        [ -z "${LIO_DEPTH:-}" ] || echo "$LIO_DEPTH" > "$LIO/iscsi/$(name $1 $node)/tpgt_1/attrib/default_cmdsn_depth" || return
        lio_enable "$(name $1 $node)" || return
    done
}
serve_ours() {
    local arguments=(serve) node lun
    if [ "${TARGET:-ramdisk}" = lio ]; then serve_lio ours; return; fi
    [ "$TRANSPORT" = tcp ] || arguments+=(--rdma "$PROVIDER")
    arguments+=(--portal "$(portal ours 0)$iser" --portal "$(portal ours 1)$iser")
    for node in 1 2 3 4; do
        arguments+=(--target "$(name ours $node)")
        for ((lun = 0; lun < $(luns $node); lun++)); do arguments+=(--lun "${MEBIBYTES}M"); done
    done
    note "${RAMDISK##*/} ${arguments[*]}"
    "$RAMDISK" "${arguments[@]}" > target.log 2>&1 &
    TARGET_PID=$!
    eventually 30 listening 3270
}

if [ "${LINK:-wire}" = loopback ]; then
    need "link" loopback
    need "RDMA device" fabric "$FABRIC" far
else
    need "link" wire
    need "RDMA devices" fabric "$FABRIC" both
fi
need "LIO serves" serve_lio lio
need "ours serves" serve_ours
need "initiator" initiator
modprobe ib_iser
discover() { iscsiadm --mode discovery --type sendtargets --portal "$(portal "$1" 0)"; }
set_all() { iscsiadm --mode node --op update --name "$1" --value "$2"; }
need "LIO discovered" discover lio
need "ours discovered" discover ours
need "records switched" set_all iface.transport_name "$TRANSPORT"
set_all node.session.queue_depth 128
set_all node.session.cmds_max 256

# attach WHO NODE PORTAL LUN: logs in by that portal, if that was not done, and adds the LUN's disk to `disks`.
attach() {
    local name session path
    name=$(name "$1" "$2")
    session_of() { iscsiadm --mode session 2> /dev/null | awk -v portal="$(portal "$1" "$2")," -v name="$3" 'index($3, portal) == 1 && $4 == name {gsub(/[][]/, "", $2); print $2}'; }
    [ -n "$(session_of "$1" "$3" "$name")" ] ||
        iscsiadm --mode node --targetname "$name" --portal "$(portal "$1" "$3")" --login > /dev/null || return
    session=$(session_of "$1" "$3" "$name")
    path="/sys/class/iscsi_session/session$session/device/target*/*:$4/block"
    eventually 30 eval "ls $path" || return
    disks+=("/dev/$(ls $path)")
}
# layout WHO NAME
layout() {
    local node
    disks=()
    case $2 in
        "1 LUN") attach "$1" 1 0 0 ;;
        "2 LUNs") attach "$1" 1 0 0 && attach "$1" 1 0 1 ;;
        "2 portals") attach "$1" 1 0 0 && attach "$1" 1 1 1 ;;
        "4 targets") for node in 1 2 3 4; do attach "$1" $node 0 0 || return; done ;;
    esac
}
# measure ACCESS SIZE DISK...: prints IOPS.
measure() {
    local access=$1 size=$2 disk jobs=()
    shift 2
    for disk in "$@"; do jobs+=(--name="${disk##*/}" --filename="$disk"); done
    timeout 120 fio --minimal --group_reporting --rw="$access" --bs="$size" --direct=1 --ioengine=libaio --iodepth=128 --norandommap \
        --randrepeat=0 --runtime="$RUNTIME" --time_based "${jobs[@]}" > fio.log 2> fio.err || { cat fio.log fio.err >&2; hung "$*"; return 1; }
    # Terse output, version 3: the error, and the IOPS of reads and of writes.
    awk -F';' '$1 == 3 {error += $5; iops += $8 + $49} END {if (error || !iops) exit 1; printf "%.0f\n", iops}' fio.log
}
# What waits for what, when something does not end.
hung() { fail "no end of I/O" "$1"; echo w > /proc/sysrq-trigger; dmesg | tail -n 100; }
# Rounded down: what is compared next are whole numbers.
median() { sort -n | awk '{at[NR] = $1} END {print int((NR % 2) ? at[(NR + 1) / 2] : (at[NR / 2] + at[NR / 2 + 1]) / 2)}'; }

rows=()
for shape in "1 LUN" "2 LUNs" "2 portals" "4 targets"; do
    need "$shape: LIO's disks" layout lio "$shape"; lio_disks=("${disks[@]}")
    need "$shape: our disks" layout ours "$shape"; our_disks=("${disks[@]}")
    for disk in "${lio_disks[@]}" "${our_disks[@]}"; do
        echo none > "/sys/block/${disk##*/}/queue/scheduler"
        # Written once before: holes are not what the figures are about.
        timeout 60 dd if=/dev/zero of="$disk" bs=1M count=$MEBIBYTES oflag=direct status=none || hung "$disk"
    done
    for size in $SIZES; do
        for access in $ACCESSES; do
            : > lio.samples; : > ours.samples
            for ((round = 1; round <= ROUNDS; round++)); do
                measure $access $size "${lio_disks[@]}" >> lio.samples || fail "$shape: LIO $access"
                measure $access $size "${our_disks[@]}" >> ours.samples || fail "$shape: ours $access"
            done
            lio=$(median < lio.samples) ours=$(median < ours.samples)
            note "$shape $access $size: LIO $(tr '\n' ' ' < lio.samples)/ ours $(tr '\n' ' ' < ours.samples)"
            row=$(awk -v a="$lio" -v b="$ours" 'BEGIN {printf "%.0f | %.0f | %.2f", a, b, (a > 0) ? b / a : 0}')
            rows+=("| $shape | $access | $size | $row |")
            check "$shape: $access $size measured" test "$lio" -gt 0 -a "$ours" -gt 0
        done
    done
    check "$shape: logged out" iscsiadm --mode node --logoutall all
done
echo
echo "| layout | access | bytes | LIO IOPS | ours IOPS | ours / LIO |"
echo "|---|---|---:|---:|---:|---:|"
printf '%s\n' "${rows[@]}"
echo
check "no error in the kernel log" eval '! dmesg | grep -E "I/O error|BUG:|WARNING:|critical target"'
[ "${TARGET:-ramdisk}" = lio ] || check "target ends at Ctrl-C" stop_serving
finish
