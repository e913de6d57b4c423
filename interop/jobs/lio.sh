#!/bin/bash
# Our initiator against LIO, the kernel's target: discover, info, luns, verify and bench, without and with CHAP.
# LIO is told what to do through configfs, as targetcli would.
source "$JOBS/prelude.sh"
modprobe -a target_core_mod iscsi_target_mod
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
mkdir -p /etc/target
core=/sys/kernel/config/target/core iscsi=/sys/kernel/config/target/iscsi
PLAIN=$IQN-plain CHAP=$IQN-chap

# lio IQN PORT AUTHENTICATION: a target with two RAM disks of 64 MiB, LUN 0 and LUN 1.
lio() {
    local group=$iscsi/$1/tpgt_1 disk store attribute
    mkdir -p "$group/np/$IP:$2" || return
    for disk in 0 1; do
        store=$core/rd_mcp_0/ram$2-$disk
        mkdir -p "$store" "$group/lun/lun_$disk" || return
        echo rd_pages=16384 > "$store/control" && echo 1 > "$store/enable" || return
        ln -s "$store" "$group/lun/lun_$disk/store" || return
    done
    for attribute in "authentication=$3" demo_mode_write_protect=0 generate_node_acls=1 cache_dynamic_acls=1; do
        echo "${attribute#*=}" > "$group/attrib/${attribute%=*}" || return
    done
    if [ "$3" = 1 ]; then
        echo -n "$USER_NAME" > "$group/auth/userid"; echo -n "$SECRET" > "$group/auth/password"
        echo -n "$TARGET_USER" > "$group/auth/userid_mutual"; echo -n "$TARGET_SECRET" > "$group/auth/password_mutual"
    fi
    echo 1 > "$group/enable"
}
need "LIO serves" lio "$PLAIN" 3260 0
need "LIO serves with CHAP" lio "$CHAP" 3261 1

# ours WORDS... -- COMMAND...: runs the command; it must succeed and print every word.
ours() {
    local words=() word said code
    while [ "$1" != -- ]; do words+=("$1"); shift; done; shift
    said=$(timeout 120 "$@" 2>&1); code=$?; echo "$said"
    [ $code = 0 ] || { echo "exit code $code"; return 1; }
    for word in "${words[@]}"; do grep -qF -- "$word" <<< "$said" || { echo "does not print $word"; return 1; }; done
}
refused() {
    local said code
    said=$(timeout 60 "$@" 2>&1); code=$?; echo "$said"
    [ $code != 0 ] && [ $code -lt 100 ] && [ -n "$said" ] && ! grep -q 'panicked at' <<< "$said"
}
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
