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
# fabric rxe|siw near|both: an RDMA device at the initiator's end of the wire, or at both.
fabric() {
    local end
    modprobe -a rdma_ucm ib_uverbs iw_cm libcrc32c || return
    case $1 in
        rxe) modprobe rdma_rxe || return ;;
        siw) insmod "$SIW" || return ;;
    esac
    for end in near far; do
        rdma link add ${end}_rdma type "$1" netdev ${end}0 || return
        rdma link show ${end}_rdma/1
        eventually 5 eval "rdma link show ${end}_rdma/1 | grep -q 'state ACTIVE'" || return
        [ "$2" = both ] || break
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
