# Sourced after prelude.sh by the jobs for iSER: a wire with RDMA devices at its ends, targets that serve
# iSER on it, and the way from discovery over TCP to a login over iSER.
#
# The wire is a veth pair inside the one guest. Its ends are NEAR (the initiator's) and FAR (the target's).
# Linux hands packets between two addresses of its own straight from one to the other, and soft-RoCE does
# the same within one device, so that nothing could cut them. Hence the rules below, which make it send
# what is for the other end over the wire, where it can be lost.

NEAR=10.10.2.1 FAR=10.10.2.2
IP=$FAR

# wire: makes the veth pair, near0 and far0.
wire() {
    modprobe veth || return
    ip link add near0 mtu 9000 type veth peer name far0 mtu 9000 || return
    ip addr add $NEAR/24 dev near0; ip addr add $FAR/24 dev far0
    ip link set near0 up; ip link set far0 up
    # Packets with a sender's address that is ours, too, are welcome.
    sysctl -qw net.ipv4.conf.{all,near0,far0}.{accept_local=1,rp_filter=0} || return
    ip neigh replace $FAR lladdr "$(< /sys/class/net/far0/address)" dev near0 nud permanent
    ip neigh replace $NEAR lladdr "$(< /sys/class/net/near0/address)" dev far0 nud permanent
    ip route add $FAR dev near0 src $NEAR table 51
    ip route add $NEAR dev far0 src $FAR table 52
    # Before the table of local addresses, for what is sent here (iif lo), and for the check of RDMA-CM
    # that the way back from an arriving request leads through the device it came by.
    ip rule add pref 100 lookup local && ip rule del pref 0 || return
    ip rule add pref 10 iif lo to $FAR lookup 51
    ip rule add pref 11 iif lo to $NEAR lookup 52
    ip rule add pref 12 iif near0 to $FAR lookup 51
    ip rule add pref 13 iif far0 to $NEAR lookup 52
    ip route get $FAR | grep 'dev near0' && ip route get $NEAR | grep 'dev far0'
}
# loopback: one interface, far0, that leads nowhere, for devices that hand packets to themselves.
loopback() {
    modprobe dummy && ip link add far0 mtu 9000 type dummy && ip addr add $FAR/24 dev far0 && ip link set far0 up
}
# fabric rxe|siw near|far|both: an RDMA device at the initiator's end of the wire, at the target's, or at both.
fabric() {
    local ends=$2 end
    modprobe -a rdma_ucm ib_uverbs iw_cm libcrc32c || return
    case $1 in
        rxe) modprobe rdma_rxe || return ;;
        siw) insmod "$SIW" || return ;;
    esac
    [ "$ends" != both ] || ends="near far"
    for end in $ends; do
        rdma link add ${end}_rdma type "$1" netdev ${end}0 || return
        rdma link show ${end}_rdma/1
        eventually 5 eval "rdma link show ${end}_rdma/1 | grep -q 'state ACTIVE'" || return
    done
}
# Silence on the wire, for RDMA and TCP alike.
cut_wire() {
    modprobe nf_tables
    nft -f - << RULES
table inet cut {
    chain silence {
        type filter hook input priority 0;
        iifname { near0, far0 } drop
    }
}
RULES
}
mend_wire() { nft delete table inet cut; }

# ISER_PORT: where the target takes iSER. The same as PORT, where it takes TCP, except on siw, which is
# TCP itself: in the kernel, it and a TCP portal cannot both have a port.
ISER_PORT=$PORT

# serve_iser PROVIDER MEBIBYTES: one target node with one LUN. TARGET=lio in the environment takes LIO instead of ours,
# to tell a wrong job from a wrong target; TRANSPORT=tcp does without iSER, to tell it from a wrong transport.
serve_iser() {
    if [ "${TARGET:-ramdisk}" = lio ]; then
        source "$JOBS/lio-target.sh"
        lio_ready && lio_target "$IQN" 1 "$2" "$IP:$PORT,iser" && lio_enable "$IQN"
        return
    fi
    local arguments=(serve) iser=,iser
    if [ "${TRANSPORT:-iser}" = tcp ]; then iser=; else arguments+=(--rdma "$1"); fi
    [ $ISER_PORT = $PORT ] || arguments+=(--portal "$IP:$PORT")
    arguments+=(--portal "$IP:$ISER_PORT$iser" --target "$IQN" --lun "$2M")
    note "${RAMDISK##*/} ${arguments[*]}"
    "$RAMDISK" "${arguments[@]}" > target.log 2>&1 &
    TARGET_PID=$!
    eventually 30 listening $PORT
}

# tgt_iser IQN MEBIBYTES: tgt serves a disk, LUN 1, over iSER, on port 3260 of every RDMA device; its option for
# another port does not work (it looks at an old errno). Its buffers need huge pages. Debian 12's tgt lets an
# initiator in only if both its address and its name are bound, hence the name.
tgt_iser() {
    local admin="tgtadm --lld iser --mode"
    export TGT_IPC_SOCKET=$PWD/tgt-control
    sysctl -qw vm.nr_hugepages=72 || return
    tgtd --foreground --iscsi "portal=$IP:3270" --iser pool_sz_mb=128 > tgt.log 2>&1 &
    eventually 20 listening 3270 || return
    truncate -s "$2M" tgt-disk
    $admin target --op new --tid 1 --targetname "$1" &&
        $admin logicalunit --op new --tid 1 --lun 1 --backing-store "$PWD/tgt-disk" &&
        $admin target --op bind --tid 1 --initiator-address ALL &&
        $admin target --op bind --tid 1 --initiator-name "$INITIATOR"
}

# initiator_of_ours NAME URL PROVIDER WORD...: our initiator, on that provider, writes to the disk and checks what it
# wrote. What it says of the session must have every word.
initiator_of_ours() {
    local name=$1 url=$2?rdma=$3 provider=$3
    shift 3
    check "$name: info" ours "$provider" "Read depth" "$@" -- "$ISCSI" --initiator "$INITIATOR" info "$url"
    cat check.log
    check "$name: verify" ours -- "$ISCSI" --initiator "$INITIATOR" verify "$url" --size 16M
    check "$name: verify in large requests" ours -- "$ISCSI" --initiator "$INITIATOR" verify "$url" --bs "${LARGE:-1M}" --iodepth 4 --size 16M
    check "$name: bench" ours IOPS -- "$ISCSI" --initiator "$INITIATOR" bench "$url" --rw randrw --bs 512 --iodepth 128 --runtime 2
    cat check.log
}
