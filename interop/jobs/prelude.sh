# Sourced by every job: checks with PASS and FAIL lines, a target to serve, the kernel's initiator.
# A job ends with `finish`, whose exit code says whether every check passed.

FAILED=0
pass() { echo "PASS $1"; }
fail() { echo "FAIL $1: ${2:-}"; FAILED=1; }
note() { echo "note: $*"; }
# check NAME COMMAND...: passes when the command succeeds; shows what it printed when it does not.
check() {
    # A job's own variables must not be hidden from what it has evaluated here, hence the long names.
    local check_name=$1 check_code check_begin=$SECONDS; shift
    # In this shell, not in a substitution: what the command starts stays a child of the job.
    "$@" > check.log 2>&1; check_code=$?
    [ $((SECONDS - check_begin)) -lt 3 ] || note "$check_name took $((SECONDS - check_begin)) s"
    if [ $check_code = 0 ]; then pass "$check_name"; else fail "$check_name" "\`$*\` ended with $check_code: $(cat check.log)"; fi
}
# need NAME COMMAND...: the same, and the job ends here when it fails: the rest stands on it.
need() {
    local need_before=$FAILED
    FAILED=0
    check "$@"
    [ $FAILED = 0 ] || finish
    FAILED=$need_before
}
finish() {
    if [ $FAILED != 0 ]; then
        echo "--- the target's output"; tail -n 60 target.log 2>/dev/null
        echo "--- iscsid's output"; tail -n 40 iscsid.log 2>/dev/null
        echo "--- the kernel's log"; dmesg | tail -n 60
    fi
    note "$SECONDS s since the job began"
    exit $FAILED
}
# eventually SECONDS COMMAND...: tries until the command succeeds.
eventually() {
    local end=$((SECONDS + $1)); shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "not within the time: $*"; "$@"; return 1; }
        sleep 0.2
    done
}
listening() { [ -n "$(ss -Hltn "sport = :$1")" ]; }

IP=127.0.0.1
PORT=3260
IQN=iqn.2026-01.org.example:guest
USER_NAME=alice SECRET=alice-secret-1234
TARGET_USER=target TARGET_SECRET=target-secret-5678
INITIATOR=iqn.2026-01.org.example:initiator
TARGET_PID=

# serve DISKS MEBIBYTES [chap]: our target with one target node. TARGET=tgt in the environment serves the
# same from tgt instead, to tell a wrong job from a wrong target; tgt's disks start at LUN 1.
serve() {
    if [ "${TARGET:-ramdisk}" = tgt ]; then serve_tgt "$@"; return; fi
    local arguments=(serve --portal "$IP:$PORT" --target "$IQN") disk
    for ((disk = 0; disk < $1; disk++)); do arguments+=(--lun "$2M"); done
    [ "${3:-}" != chap ] || arguments+=(--chap "$USER_NAME:$SECRET" --mutual-chap "$TARGET_USER:$TARGET_SECRET")
    note "${RAMDISK##*/} ${arguments[*]}"
    "$RAMDISK" "${arguments[@]}" > target.log 2>&1 &
    TARGET_PID=$!
    eventually 30 listening $PORT
}
serve_tgt() {
    export TGT_IPC_SOCKET=$PWD/tgt-control
    tgtd --foreground --iscsi "portal=$IP:$PORT" > target.log 2>&1 &
    TARGET_PID=$!
    eventually 30 listening $PORT || return
    local admin="tgtadm --lld iscsi --mode" disk
    $admin target --op new --tid 1 --targetname "$IQN"
    for ((disk = 1; disk <= $1; disk++)); do
        truncate -s "$2M" "disk$disk"
        $admin logicalunit --op new --tid 1 --lun $disk --backing-store "$PWD/disk$disk"
        $admin logicalunit --op update --tid 1 --lun $disk --params thin_provisioning=1
    done
    $admin target --op bind --tid 1 --initiator-address ALL
    $admin target --op update --tid 1 --name HeaderDigest --value CRC32C,None
    $admin target --op update --tid 1 --name DataDigest --value CRC32C,None
    [ "${3:-}" = chap ] || return 0
    $admin account --op new --user "$USER_NAME" --password "$SECRET"
    $admin account --op bind --tid 1 --user "$USER_NAME"
    $admin account --op new --user "$TARGET_USER" --password "$TARGET_SECRET"
    $admin account --op bind --tid 1 --user "$TARGET_USER" --outgoing
}
# Ctrl-C: the target ends by itself, cleanly. tgt has no such way, it is killed.
stop_serving() {
    local signal=INT code
    [ "${TARGET:-ramdisk}" != tgt ] || { kill -KILL $TARGET_PID; wait $TARGET_PID; return 0; }
    # A background child of a non-interactive shell ignores SIGINT until it installs its own handler.
    kill -$signal $TARGET_PID
    eventually 20 test ! -e /proc/$TARGET_PID/exe || { kill -KILL $TARGET_PID; return 1; }
    wait $TARGET_PID; code=$?
    [ $code = 0 ] || { echo "exit code $code"; return 1; }
    ! grep -n 'panicked at' target.log
}

# initiator: loads the kernel's initiator and starts its daemon.
initiator() {
    modprobe -a iscsi_tcp sd_mod sg || return
    mkdir -p /etc/iscsi
    echo "InitiatorName=$INITIATOR" > /etc/iscsi/initiatorname.iscsi
    # What the host's own initiator may remember is none of the guest's business.
    rm -rf /etc/iscsi/nodes /etc/iscsi/send_targets /var/lib/iscsi
    iscsid --foreground --debug 1 > iscsid.log 2>&1 &
    # The daemon's socket has an abstract name.
    eventually 20 grep -q ISCSIADM_ABSTRACT_NAMESPACE /proc/net/unix
}
# parameter NAME VALUE: sets a parameter of the node record.
parameter() { iscsiadm --mode node --targetname "$IQN" --op update --name "$1" --value "$2"; }
# disks: the kernel's names of our disks, in the order of their LUNs.
disks() { lsscsi --transport | awk -v iqn="$IQN" '$2 == "disk" && index($3, iqn) {print $1, $NF}' | sort -V | awk '{print $2}'; }
disk_count() { [ "$(disks | grep -c ^/dev/)" = "$1" ]; }
operational() { iscsiadm --mode session --print 3 | grep -q 'iSCSI Session State: LOGGED_IN'; }

# fio_verify NAME DEVICE SIZE: random reads and writes of many sizes, then everything is read and checked.
fio_verify() {
    # Without this fio would make a file of the device's name.
    [ -b "$2" ] || { echo "$2 is no block device"; return 1; }
    fio --name="$1" --filename="$2" --rw=randrw --bsrange=512-64k --size="$3" --direct=1 --ioengine=libaio \
        --iodepth=32 --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 > "fio-$1.log" 2>&1
    local code=$?
    [ $code = 0 ] && grep -q 'err= 0' "fio-$1.log" && ! grep -q 'verify:.*bad' "fio-$1.log" || { cat "fio-$1.log"; return 1; }
}
# written DISK: sectors written so far, as the kernel counts what completed.
written() { awk '{print $7}' "/sys/block/${1##*/}/stat"; }
# resumes DISK SECONDS: writes complete again.
resumes() { local before; before=$(written "$1"); eventually "$2" eval '[ "$(written '"$1"')" -gt '"$((before + 200))"' ]'; }

# timed SECONDS COMMAND...: `timeout`, for functions of the job, too.
timed() {
    if [ "$(type -t "$2")" = function ]; then shift; "$@"; else timeout "$@"; fi
}
# ours WORDS... -- COMMAND...: runs the command; it must succeed and print every word.
ours() {
    local words=() word said code
    while [ "$1" != -- ]; do words+=("$1"); shift; done; shift
    said=$(timed 120 "$@" 2>&1); code=$?; echo "$said"
    [ $code = 0 ] || { echo "exit code $code"; return 1; }
    for word in "${words[@]}"; do grep -qF -- "$word" <<< "$said" || { echo "does not print $word"; return 1; }; done
}
refused() {
    local said code
    said=$(timeout 60 "$@" 2>&1); code=$?; echo "$said"
    [ $code != 0 ] && [ $code -lt 100 ] && [ -n "$said" ] && ! grep -q 'panicked at' <<< "$said"
}
