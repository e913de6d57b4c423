#!/bin/bash
# RDMA devices, and programs of a user who may not lock much memory: each of ours names `ulimit -l`, at either end, and works
# where the limit suffices. What is registered is shown. What a session had for itself is given back at its logout; what the
# store has stays registered for the next one, and no more of it with each.
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
# registered: bytes in the last line of statistics.
registered() {
    awk '/registered with RDMA devices/ {
        sub(/.*devices: /, ""); split($0, words, /[ ,]+/)
        unit["B"] = 1; unit["KiB"] = 2 ^ 10; unit["MiB"] = 2 ^ 20; unit["GiB"] = 2 ^ 30
        count = int(words[1] * unit[words[2]])
    }
    END { print count + 0 }' target.log
}
reads() {
    "$ISCSI" bench "$URL" --rw randread --bs 4096 --iodepth 8 --runtime 6 > bench.log 2>&1 &
    # In `eventually` the arguments are others.
    local bench=$! before=$1
    eventually 20 eval '[ "$(registered)" -gt "$before" ]' || return
    wait $bench
    # Two lines of statistics later the session is gone.
    sleep 4
}
# The whole LUN, and what all sessions share.
STORE=$((16 << 20)) SHARED=$((1 << 20))
check "registered memory is shown" reads 0
first=$(registered)
check "what a session had is given back at logout" test "$first" -le $((STORE + SHARED))
check "what the store has stays registered" test "$first" -gt $((1 << 20))
check "another session" reads "$first"
check "it is not more with each session" test "$(registered)" -le "$first"
grep -F 'registered with' target.log | sort | uniq -c
check "target ends at Ctrl-C" stop_serving

need "serve with a small limit" serve_as "${SMALL[@]}"
check "no session at a target that may lock too little" refused "$ISCSI" verify "$URL" --size 4M
cat check.log
check "the target names ulimit -l" eventually 5 grep -F 'ulimit -l' target.log
grep -F 'ulimit -l' target.log
check "it still ends at Ctrl-C" stop_serving
finish
