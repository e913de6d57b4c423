#!/bin/bash
# RDMA devices, and programs of a user who may not lock much memory: each of ours names `ulimit -l`, at either end, and works where
# the limit suffices. What is registered is shown while a session has it and given back at its logout.
source "$JOBS/prelude.sh"
source "$JOBS/rdma.sh"
need "wire" wire
need "RDMA devices" fabric rxe both
chmod a+rw /dev/infiniband/*
# The checkout may be closed to others.
install -m 755 "$RAMDISK" "$ISCSI" /usr/local/bin && RAMDISK=/usr/local/bin/ramdisk ISCSI=/usr/local/bin/iscsi
URL=iser://$IP:$PORT/$IQN/0?rdma=verbs
# Before a command: a user without privileges who may lock so many bytes.
UNPRIVILEGED=(setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all)
SMALL=(prlimit --memlock=65536:65536 "${UNPRIVILEGED[@]}")
ENOUGH=(prlimit --memlock=268435456:268435456 "${UNPRIVILEGED[@]}")
serve_as() {
    "$@" "$RAMDISK" serve --rdma verbs --portal "$IP:$PORT,iser" --target "$IQN" --lun 16M --stats > target.log 2>&1 &
    TARGET_PID=$!
    eventually 30 listening $PORT
}
# names COMMAND...: fails, with a sentence that names the limit.
names() {
    local said code
    said=$(refused "$@"); code=$?; echo "$said"
    [ $code = 0 ] && grep -qF 'ulimit -l' <<< "$said"
}

need "serve without privileges" serve_as "${ENOUGH[@]}"
check "enough at both ends" "${ENOUGH[@]}" "$ISCSI" verify "$URL" --size 4M
check "the initiator names ulimit -l" names "${SMALL[@]}" "$ISCSI" verify "$URL" --size 4M
cat check.log
"$ISCSI" bench "$URL" --rw randread --bs 4096 --iodepth 8 --runtime 6 > bench.log 2>&1 &
bench=$!
check "registered memory is shown" eventually 20 grep -E 'registered with RDMA devices: [1-9]' target.log
wait $bench
check "it is given back at logout" eventually 15 eval 'tail -n 4 target.log | grep -F "registered with RDMA devices: 0 "'
grep -F 'registered with' target.log | sort | uniq -c
check "target ends at Ctrl-C" stop_serving

need "serve with a small limit" serve_as "${SMALL[@]}"
check "no session at a target that may lock too little" refused "$ISCSI" verify "$URL" --size 4M
cat check.log
check "the target names ulimit -l" eventually 5 grep -F 'ulimit -l' target.log
grep -F 'ulimit -l' target.log
check "it still ends at Ctrl-C" stop_serving
finish
