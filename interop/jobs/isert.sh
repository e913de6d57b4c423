#!/bin/bash
# `iscsi verify` over iSER against LIO's isert, RUNS times, with nothing in the way: not one connection is lost. The
# threads of isert swap neighbouring responses now and then, so that a StatSN is ahead of the one that is missing.
#
# Soft-RoCE itself may lose a connection on a busy machine: where an acknowledgement is late it sends packets again, takes
# an answer that comes twice for a wrong one (Linux 6.12: "WARNING ... rxe_completer"), or gets no further. The counters of
# the devices tell. A run that loses its connection while they count packets sent again is no run with nothing in the way:
# another takes its place. A reason that names a sequence number is a failure all the same.
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

# sent_again: how often the devices had to send anything again, or saw that the other did.
sent_again() {
    cat /sys/class/infiniband/{near,far}_rdma/ports/1/hw_counters/{completer_retry_err,duplicate_request,out_of_seq_request,rcvd_seq_err,retry_exceeded_err} |
        awk '{ n += $1 } END { print n + 0 }'
}
# One line for each run: how often the session was built anew.
runs() {
    local run=0 disturbed=0 said before after count
    : > reconnects
    while ((run < ${RUNS:-20})); do
        before=$(sent_again)
        said=$("$ISCSI" --initiator "$INITIATOR" --json verify "$LIO_URL" --size "${SIZE:-8M}" --bs 16K 2>&1) ||
            { echo "run $run: $said"; return 1; }
        after=$(sent_again)
        count=$(grep -o '"reconnects": [0-9]*' <<< "$said") || { echo "run $run: $said"; return 1; }
        if [ "$count" != '"reconnects": 0' ]; then
            echo "run $run: packets sent again: $((after - before)); $said"
            if ((after > before && disturbed < ${RUNS:-20} / 2)) && ! grep -E "StatSN|CmdSN|DataSN" <<< "$said"; then
                disturbed=$((disturbed + 1))
                continue
            fi
        fi
        echo "$count" >> reconnects
        run=$((run + 1))
    done
    echo "$disturbed runs began anew, because the device had to send packets again"
    sort reconnects | uniq -c
}
check "fault-free runs" runs
cat check.log
check "no reconnect" eval '[ "$(grep -c "\"reconnects\": 0$" reconnects)" = "${RUNS:-20}" ]'
check "LIO's kernel lives" eval '! dmesg | grep -E "soft lockup|Oops|BUG:"'
finish
