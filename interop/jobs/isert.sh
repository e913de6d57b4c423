#!/bin/bash
# `iscsi verify` over iSER against LIO's isert, RUNS times, with nothing in the way: not one connection is lost. The
# threads of isert swap neighbouring responses now and then, so that a StatSN is ahead of the one that is missing.
source "$JOBS/prelude.sh"
source "$JOBS/rdma.sh"
source "$JOBS/lio-target.sh"
LIO_IQN=$IQN-lio
LIO_URL=iser://$IP:3261/$LIO_IQN/0?rdma=verbs

need "wire" wire
need "RDMA devices" fabric rxe both
serve_lio() { lio_ready && lio_target "$LIO_IQN" 1 64 "$IP:3261,iser" && lio_enable "$LIO_IQN"; }
need "LIO serves iSER" serve_lio
# As in iser-peers.sh: isert of Linux 6.12 locks up its kernel when the first command comes too early.
need "slow wire" eval 'modprobe sch_netem && tc qdisc add dev near0 root netem delay 50ms'
# One line for each run: how often the session was built anew.
runs() {
    local run said
    for ((run = 0; run < ${RUNS:-20}; run++)); do
        said=$("$ISCSI" --initiator "$INITIATOR" --json verify "$LIO_URL" --size "${SIZE:-8M}" --bs 16K 2>&1) ||
            { echo "run $run: $said"; return 1; }
        grep -o '"reconnects": [0-9]*' <<< "$said"
    done > reconnects
    sort reconnects | uniq -c
}
check "fault-free runs" runs
cat check.log
check "no reconnect" eval '[ "$(grep -c "\"reconnects\": 0$" reconnects)" = "${RUNS:-20}" ]'
check "LIO's kernel lives" eval '! dmesg | grep -E "soft lockup|Oops|BUG:"'
finish
