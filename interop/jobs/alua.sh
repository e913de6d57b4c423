#!/bin/bash
# One LUN by two target port groups of LIO whose asymmetric access states change (SPC-5 5.15.2) under verified I/O of our
# multipath: commands go over the better group, move when that changes, wait where there is none, and none of them fails.
source "$JOBS/prelude.sh"
source "$JOBS/lio-target.sh"
PORTALS=(10.10.3.1:3260 10.10.3.2:3260)
GROUP=$LIO/iscsi/$IQN
STORE=$LIO/core/rd_mcp_0/${IQN##*:}
URLS=("iscsi://${PORTALS[0]}/$IQN/0" "iscsi://${PORTALS[1]}/$IQN/0")

# Two portal groups with the same store as LUN 0, each in a target port group of its own, near and far.
serve_lio() {
    ip addr add 10.10.3.1/32 dev lo && ip addr add 10.10.3.2/32 dev lo || return
    lio_ready && lio_target "$IQN" 1 32 "${PORTALS[0]}" && lio_more "$IQN" 2 "${PORTALS[1]}" || return
    local name id=16
    for name in near far; do
        mkdir "$STORE/alua/$name" && echo $id > "$STORE/alua/$name/tg_pt_gp_id" || return
        # How much slower LIO answers where a group is not optimized.
        echo 5 > "$STORE/alua/$name/nonop_delay_msecs"
        id=$((id + 1))
    done
    echo near > "$GROUP/tpgt_1/lun/lun_0/alua_tg_pt_gp" && echo far > "$GROUP/tpgt_2/lun/lun_0/alua_tg_pt_gp" || return
    lio_enable "$IQN" 1 && lio_enable "$IQN" 2
}
# states NEAR FAR: the codes of SPC-5 table 175, as LIO takes them.
OPTIMIZED=0 NON_OPTIMIZED=1 STANDBY=2 UNAVAILABLE=3
states() { echo "$2" > "$STORE/alua/far/alua_access_state" && echo "$1" > "$STORE/alua/near/alua_access_state"; }
# offline PORTAL_GROUP 0|1: the port, whatever the state of its group.
offline() { echo "$2" > "$GROUP/tpgt_$1/lun/lun_0/alua_tg_pt_offline"; }
served() { cat "$GROUP/tpgt_$1/lun/lun_0/statistics/scsi_tgt_port/in_cmds"; }
# goes near|far|both|nowhere: by which port commands come in a second. A path that waits asks once a second how it stands.
goes() {
    local near far
    near=$(served 1) far=$(served 2); sleep 1
    near=$(($(served 1) - near)) far=$(($(served 2) - far))
    echo "$near by near, $far by far"
    case $1 in
        near) [ $near -gt 20 ] && [ $far -le 4 ] ;;
        far) [ $far -gt 20 ] && [ $near -le 4 ] ;;
        both) [ $near -gt 20 ] && [ $far -gt 20 ] ;;
        nowhere) [ $near -le 4 ] && [ $far -le 4 ] ;;
    esac
}
# moves NAME WHERE: the commands go there, soon.
moves() { check "$1" eventually 30 goes "$2"; working || fail "$1" "the I/O has ended"; }

need "LIO serves" serve_lio
need "states" states $OPTIMIZED $NON_OPTIMIZED
"$ISCSI" --json --initiator "$INITIATOR" verify "${URLS[0]}" --path "${URLS[1]}" --bs 16K --iodepth 16 --passes 1000000 \
    > verify.out 2> verify.err &
VERIFY=$!
working() { [ -e /proc/$VERIFY/exe ]; }
moves "the optimized path is used" near
states $NON_OPTIMIZED $OPTIMIZED
moves "I/O follows the optimized state" far
states $NON_OPTIMIZED $NON_OPTIMIZED
moves "alike paths share the I/O" both
states $OPTIMIZED $NON_OPTIMIZED
moves "and leave it to a better one" near
states $OPTIMIZED $OPTIMIZED
moves "a path that becomes as good is used, too" both
states $STANDBY $OPTIMIZED
moves "not by a port in standby" far
states $OPTIMIZED $STANDBY
moves "back when that changes" near
states $UNAVAILABLE $NON_OPTIMIZED
moves "not by an unavailable port" far
states $STANDBY $STANDBY
moves "where all stand by, I/O waits" nowhere
sleep 2
states $NON_OPTIMIZED $STANDBY
moves "and goes on" near
states $OPTIMIZED $NON_OPTIMIZED
offline 1 1
moves "not by a port that is offline" far
offline 1 0
moves "but when it is back" near
# Every command meets the transition, which lasts a second.
echo 1000 > "$STORE/alua/near/trans_delay_msecs"
states $NON_OPTIMIZED $OPTIMIZED
moves "a transition is lived through" far
kill -INT $VERIFY
eventually 60 eval '[ ! -e /proc/$VERIFY/exe ]'
wait $VERIFY; code=$?
cat verify.err verify.out
check "no error and no difference" eval '[ $code = 0 ] && grep -q "\"longest_ms\"" verify.out'
check "no path was lost" grep '"reconnects": 0' verify.out
note "longest request $(sed -n 's/.*"longest_ms": \([0-9.]*\).*/\1/p' verify.out) ms"
check "no error in the kernel log" eval '! dmesg | grep -E "BUG:|WARNING:|Oops|hung task"'
finish
