#!/bin/bash
# needs: siw
# The verbs provider by itself: the cases that every provider of queue pairs passes, over soft-RoCE and over soft-iWARP.
# CONFORMANCE is the program that runs them.
source "$JOBS/prelude.sh"
source "$JOBS/rdma.sh"

# device NAME KIND ADDRESS: an RDMA device on an interface of its own that leads nowhere.
device() {
    ip link add "${1}0" mtu 9000 type dummy && ip addr add "$3/24" dev "${1}0" && ip link set "${1}0" up || return
    rdma link add "$1" type "$2" netdev "${1}0" && eventually 5 eval "rdma link show $1/1 | grep -q 'state ACTIVE'"
}
need "modules" eval 'modprobe -a dummy rdma_ucm ib_uverbs iw_cm libcrc32c rdma_rxe && insmod "$SIW"'
need "soft-RoCE" device roce rxe 10.10.3.1
need "soft-iWARP" device iwarp siw 10.10.4.1

timeout 400 "$CONFORMANCE" 10.10.3.1 10.10.4.1 --steps "${STEPS:-8}" > cases.log 2> cases.err
check "every case passes" test $? = 0
while IFS= read -r line; do
    [[ $line =~ ^10\.10\.([34])\.1\ (.*[^ ])\ +(ok|FAILED)\ +[0-9.]+\ s$ ]] || continue
    [ "${BASH_REMATCH[1]}" = 3 ] && fabric=soft-RoCE || fabric=soft-iWARP
    if [ "${BASH_REMATCH[3]}" = ok ]; then pass "$fabric: ${BASH_REMATCH[2]}"; else fail "$fabric: ${BASH_REMATCH[2]}"; fi
done < cases.log
[ $FAILED = 0 ] || cat cases.log cases.err
check "both devices were judged" test "$(grep -c ' ok ' cases.log)" -ge 20
check "no error in the kernel log" eval '! dmesg | grep -E "BUG:|WARNING:|Oops|hung task"'
finish
