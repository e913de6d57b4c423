# Sourced after prelude.sh by the jobs that use LIO, the kernel's target. LIO is told what to do through
# configfs, as targetcli would.

LIO=/sys/kernel/config/target
lio_ready() {
    modprobe -a target_core_mod iscsi_target_mod || return
    mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config || return
    mkdir -p /etc/target
}
# lio_target IQN DISKS MEBIBYTES PORTAL[,iser]...: a target node with RAM disks, LUN 0 and on, that lets
# every initiator in. It listens when lio_enable says so. With `,iser` a portal takes TCP and iSER.
lio_target() {
    local group=$LIO/iscsi/$1/tpgt_1 disks=$2 pages=$(($3 * 256)) disk store
    local name=${1##*:}
    shift 3
    for ((disk = 0; disk < disks; disk++)); do
        store=$LIO/core/rd_mcp_$disk/$name
        mkdir -p "$store" "$group/lun/lun_$disk" || return
        echo rd_pages=$pages > "$store/control" && echo 1 > "$store/enable" || return
        # Its name in VPD 80h and, by its hexadecimal digits, in 83h.
        cat /proc/sys/kernel/random/uuid > "$store/wwn/vpd_unit_serial" || return
        ln -s "$store" "$group/lun/lun_$disk/store" || return
    done
    lio_open "$group" "$@"
}
# lio_open GROUP PORTAL...: the portals of a portal group, which lets every initiator in.
lio_open() {
    local group=$1 portal attribute
    shift
    for portal in "$@"; do
        mkdir -p "$group/np/${portal%,iser}" || return
        [[ $portal != *,iser ]] || { modprobe ib_isert && echo 1 > "$group/np/${portal%,iser}/iser"; } || return
    done
    for attribute in authentication=0 demo_mode_write_protect=0 generate_node_acls=1 cache_dynamic_acls=1; do
        echo "${attribute#*=}" > "$group/attrib/${attribute%=*}" || return
    done
}
# lio_more IQN TAG PORTAL...: another portal group of the node, with the first disk of the first group as LUN 0.
lio_more() {
    local group=$LIO/iscsi/$1/tpgt_$2 name=${1##*:}
    shift 2
    mkdir -p "$group/lun/lun_0" && ln -s "$LIO/core/rd_mcp_0/$name" "$group/lun/lun_0/store" || return
    lio_open "$group" "$@"
}
# lio_chap IQN: demands CHAP of every initiator, and proves itself.
lio_chap() {
    local group=$LIO/iscsi/$1/tpgt_1
    echo 1 > "$group/attrib/authentication" || return
    echo -n "$USER_NAME" > "$group/auth/userid"; echo -n "$SECRET" > "$group/auth/password"
    echo -n "$TARGET_USER" > "$group/auth/userid_mutual"; echo -n "$TARGET_SECRET" > "$group/auth/password_mutual"
}
# lio_enable IQN [TAG]: a portal group listens, the first one if none is named.
lio_enable() { echo 1 > "$LIO/iscsi/$1/tpgt_${2:-1}/enable"; }
# lio_remove IQN: takes the target node and its disks away.
lio_remove() {
    local group=$LIO/iscsi/$1/tpgt_1 name=${1##*:} entry
    echo 0 > "$group/enable"
    for entry in "$group"/lun/lun_*; do rm "$entry/store" && rmdir "$entry" || return; done
    rmdir "$group"/np/* && rmdir "$group" && rmdir "${group%/*}" && rmdir "$LIO"/core/rd_mcp_*/"$name"
}
