# shellcheck shell=bash
# An NFSv4.2 server and clients on one kernel, for a script that scripts/guest runs. A client is a network namespace with a
# host name and a boot id of its own: to the kernel, to the server and to bak another machine. No daemon of nfs-utils takes part: what
# exportfs and rpc.mountd would tell the kernel is written into its caches here.

lease=10 # seconds; the shortest that the server takes

# server DIR exports it, fast to forget clients that are cut off.
server() {
    modprobe -a nfsd nfs nfsv4 veth sch_ingress cls_matchall act_gact tcp_diag
    mkdir -p "$1" /var/lib/nfs/v4recovery
    mount -t tmpfs srv "$1"
    mount -t nfsd nfsd /proc/fs/nfsd
    echo -2 -3 +4 +4.1 +4.2 >/proc/fs/nfsd/versions
    echo $lease >/proc/fs/nfsd/nfsv4leasetime
    echo $lease >/proc/fs/nfsd/nfsv4gracetime
    # This makes the group of the clients, too, for which the rest is said.
    echo 'nfsd 127.0.0.1 2147483647 clients' >/proc/net/rpc/auth.unix.ip/channel
    # Flags of include/uapi/linux/nfsd/export.h: fsid 0x2000, no_subtree_check 0x400, insecure 0x2; root is not squashed.
    echo "clients $1 2147483647 $((0x2402)) 65534 65534 0" >/proc/net/rpc/nfsd.export/channel
    printf 'clients 1 \\x00000000 2147483647 %s\n' "$1" >/proc/net/rpc/nfsd.fh/channel
    echo tcp 2049 >/proc/fs/nfsd/portlist
    echo 16 >/proc/fs/nfsd/threads
}

declare -A client_pid=() client_number=()
# client NAME HOSTNAME makes a client that has mounted the server's directory at /mnt.
client() {
    local name=$1 n=$((${#client_pid[@]} + 1)) pid
    unshare --net --uts --mount --propagation private sleep infinity &
    pid=$!
    client_pid[$name]=$pid client_number[$name]=$n
    until [ "$(readlink /proc/$pid/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ] && grep -q sleep /proc/$pid/comm; do sleep 0.05; done
    ip link add "server$n" type veth peer name "client$n"
    ip link set "client$n" netns $pid
    ip addr add "10.0.$n.1/24" dev "server$n"
    ip link set "server$n" up
    tc qdisc add dev "server$n" clsact
    cat /proc/sys/kernel/random/uuid >"/run/boot_id-$name"
    echo "nfsd 10.0.$n.2 2147483647 clients" >/proc/net/rpc/auth.unix.ip/channel
    # shellcheck disable=SC2016
    on "$name" bash -euc '
        echo "$1" >/proc/sys/kernel/hostname
        mount -t sysfs sysfs /sys
        mount --bind "/run/boot_id-$3" /proc/sys/kernel/random/boot_id
        ip link set lo up
        ip addr add "10.0.$2.2/24" dev "client$2"
        ip link set "client$2" up
        mount -i -t nfs4 -o "vers=4.2,hard,addr=10.0.$2.1,clientaddr=10.0.$2.2" "10.0.$2.1:/" /mnt
    ' - "$2" "$n" "$name"
}

# on CLIENT COMMAND… runs it there.
on() {
    local pid=${client_pid[$1]}
    shift
    nsenter -t "$pid" --net --uts --mount -- "$@"
}

# cut CLIENT replies|requests…: these get lost without a word.
cut() {
    local n=${client_number[$1]} what
    for what in "${@:2}"; do
        case $what in
        replies) tc filter add dev "server$n" egress matchall action drop ;;
        requests) tc filter add dev "server$n" ingress matchall action drop ;;
        esac
    done
}

# heal CLIENT undoes that. Its connection is broken, too, so that it makes another at once: a real one would wait longer.
heal() {
    local n=${client_number[$1]}
    tc filter del dev "server$n" egress
    tc filter del dev "server$n" ingress
    on "$1" ss -K dport = 2049 >/dev/null
}

# The names and the number of the server's clients.
server_clients() { cat /proc/fs/nfsd/clients/*/info 2>/dev/null | sed -n 's/^name: //p' | sort; }
