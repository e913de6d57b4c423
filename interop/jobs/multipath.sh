#!/bin/bash
# One LUN by two portals, each of which is cut and comes back in turn, six times, under verified I/O: our multipath
# against LIO and against our target, then dm-multipath (multipathd, open-iscsi) against LIO, with the same times for
# NOP-Outs. Not one error; how long the longest request took is printed for each.
# Two cuts of three are silence, which a NOP-Out without an answer ends; the third resets connections.
# FLAPS, and the seconds DOWN and UP, in the environment make it longer.
source "$JOBS/prelude.sh"
source "$JOBS/lio-target.sh"
# Two addresses of the guest's own: what goes to one of them comes from it, too, so that a rule for one cuts one path.
PORTALS=(10.10.3.1 10.10.3.2)
FLAPS=${FLAPS:-6} DOWN=${DOWN:-6} UP=${UP:-3} MEBIBYTES=32
# Seconds of silence before a NOP-Out, and for its answer.
NOOP=${NOOP:-2}

addresses() {
    local portal
    for portal in "${PORTALS[@]}"; do ip addr add "$portal/32" dev lo || return; done
    modprobe -a nf_tables nft_reject_inet
}
# cut ADDRESS silence|reset, and mend.
cut() {
    local rules="ip daddr $1 drop"
    # The reset itself goes to that address, too.
    [ "$2" = silence ] || rules="ip daddr $1 tcp flags & rst == rst accept; ip daddr $1 meta l4proto tcp reject with tcp reset"
    nft -f - << RULES
table inet cut {
    chain in { type filter hook input priority 0; $rules; }
}
RULES
}
mend() { nft delete table inet cut; }
connected() { [ -n "$(ss -Htn state established dst "$1" dport = ":$2")" ]; }

# flaps PORT: each portal in turn is cut and is back, and its connection with it.
flaps() {
    local flap address how
    for ((flap = 0; flap < FLAPS; flap++)); do
        address=${PORTALS[flap % 2]} how=silence
        [ $((flap % 3)) != 2 ] || how=reset
        working || { echo "the I/O has ended before flap $flap"; return 1; }
        cut "$address" "$how" || return
        sleep "$DOWN"
        mend || return
        eventually 60 connected "$address" "$1" || return
        sleep "$UP"
    done
    working || { echo "the I/O has ended before its time"; return 1; }
}

# ours NAME PORT: our initiator's own multipath.
ours_flaps() {
    local name=$1 urls=() portal pid code
    for portal in "${PORTALS[@]}"; do urls+=("iscsi://$portal:$2/$IQN/0"); done
    "$ISCSI" --json --initiator "$INITIATOR" --noop-interval "$NOOP" --noop-timeout "$NOOP" verify "${urls[0]}" \
        --path "${urls[1]}" --bs 16K --iodepth 16 --passes 1000000 > verify.out 2> verify.err &
    pid=$!
    working() { [ -e /proc/$pid/exe ]; }
    check "$name: both paths are used" eventually 30 eval "connected ${PORTALS[0]} $2 && connected ${PORTALS[1]} $2"
    check "$name: $FLAPS flaps" flaps "$2"
    # It ends after a last check of what it has written.
    kill -INT $pid
    eventually 120 eval "[ ! -e /proc/$pid/exe ]"
    wait $pid; code=$?
    cat verify.err verify.out
    check "$name: no error and no difference" eval '[ '$code' = 0 ] && grep -q "\"longest_ms\"" verify.out'
    check "$name: each cut was noticed" eval '[ "$(sed -n "s/.*\"reconnects\": \([0-9]*\).*/\1/p" verify.out)" -ge '"$FLAPS ]"
    table+=("$name: longest request $(sed -n 's/.*"longest_ms": \([0-9.]*\).*/\1/p' verify.out) ms")
}
table=()

need "addresses" addresses
serve_lio() {
    lio_ready && lio_target "$IQN" 1 $MEBIBYTES "${PORTALS[0]}:3260" "${PORTALS[1]}:3260" && lio_enable "$IQN"
}
need "LIO serves" serve_lio
serve_ours() {
    "$RAMDISK" serve --portal "${PORTALS[0]}:3270" --portal "${PORTALS[1]}:3270" --target "$IQN" --lun ${MEBIBYTES}M \
        > target.log 2>&1 &
    TARGET_PID=$!
    eventually 30 eval '[ "$(ss -Hltn sport = 3270 | wc -l)" = 2 ]'
}
need "ours serves" serve_ours

ours_flaps "ours to LIO" 3260
ours_flaps "ours to ours" 3270

# multipath_up PORT: the kernel's sessions to both portals, and one device of device-mapper over them.
multipath_up() {
    modprobe -a dm_multipath dm_round_robin scsi_dh_alua || return
    # multipathd takes devices that udev has looked at.
    mkdir -p /run/udev && /usr/lib/systemd/systemd-udevd --daemon && udevadm trigger && udevadm settle || return
    cat > /etc/multipath.conf << CONF
defaults {
    user_friendly_names yes
    find_multipaths no
    polling_interval 1
    max_polling_interval 1
}
overrides {
    path_grouping_policy group_by_prio
    path_selector "round-robin 0"
    path_checker tur
    prio alua
    hardware_handler "1 alua"
    failback immediate
    no_path_retry 120
    fast_io_fail_tmo 1
}
CONF
    multipathd -d > multipathd.log 2>&1 &
    eventually 20 multipathd show status || return
    initiator || return
    iscsiadm --mode discovery --type sendtargets --portal "${PORTALS[0]}:$1" || return
    parameter 'node.conn[0].timeo.noop_out_interval' "$NOOP"
    parameter 'node.conn[0].timeo.noop_out_timeout' "$NOOP"
    # A lost session's commands fail as soon as it is lost, as multipathd will have it.
    parameter node.session.timeo.replacement_timeout 1
    iscsiadm --mode node --targetname "$IQN" --login || return
    eventually 30 disk_count 2 || return
    eventually 60 eval '[ "$(multipathd show paths format "%d %t" | grep -c " active")" = 2 ]'
}
need "dm-multipath has two paths" multipath_up 3260
cat check.log
multipathd show topology
disk=$(echo /dev/mapper/mpath?)
# Pass after pass until it is told to stop, each checked.
fio_passes() {
    local pass
    for ((pass = 0; ; pass++)); do
        [ ! -e stop ] || return 0
        fio --name=dm --filename="$disk" --rw=write --bs=16k --size=${MEBIBYTES}m --direct=1 --ioengine=libaio \
            --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 --output-format=json > "dm-$pass.log" 2>&1 || return
        grep -q '"error" : 0' "dm-$pass.log" && ! grep -q 'verify:.*bad' "dm-$pass.log" || return
    done
}
fio_passes &
FIO=$!
working() { [ -e /proc/$FIO/exe ]; }
check "dm-multipath to LIO: $FLAPS flaps" flaps 3260
touch stop
wait $FIO; code=$?
check "dm-multipath to LIO: no error and no difference" eval '[ $code = 0 ] || { cat dm-*.log; false; }'
check "dm-multipath to LIO: each cut was noticed" test "$(dmesg | grep -c 'Failing path')" -ge "$FLAPS"
dmesg | grep -E 'Failing|Reinstat|detected conn|ping timeout' | tail -n 40
# fio's completion latencies, in nanoseconds.
longest=$(awk '/"clat_ns"/ {here = 1} here && /"max"/ {gsub(/[^0-9]/, ""); if ($0 + 0 > most) most = $0 + 0; here = 0}
    END {printf "%.1f", most / 1e6}' dm-*.log)
table+=("dm-multipath to LIO: longest request $longest ms, $(ls dm-*.log | wc -l) passes")
printf '%s\n' "${table[@]}"
check "logout" iscsiadm --mode node --targetname "$IQN" --logout
check "target ends at Ctrl-C" stop_serving
check "no error in the kernel log" eval '! dmesg | grep -E "BUG:|WARNING:|Oops|hung task"'
finish
