#!/usr/bin/env bash
# Several hosts on this one, with a network file system between them, for trying and testing.
#
#   tools/hosts.sh up N [SHARED]   hosts h1 to hN, `files` and `control`; installs what is missing
#   tools/hosts.sh exec HOST COMMAND…      run a command in a host, in the shared folder, or in /
#                                          where that does not answer
#   tools/hosts.sh copy            copy the checkout there again, after a change
#   tools/hosts.sh slurm           start Slurm: a node per host, its controller on `control`
#   tools/hosts.sh ray             start Ray (anew): a node per host, its head on h1; prints the address
#   tools/hosts.sh cut HOST        take its network link down; `join HOST` brings it back
#   tools/hosts.sh lose HOST       end all its processes without a word; `boot HOST` starts it anew
#   tools/hosts.sh status
#   tools/hosts.sh down            stop what it started, remove its folder
#
# A host has its own network, processes, host name, /tmp, /dev/shm and /run, and the Python environment
# of this checkout. `files` serves the shared folder, /mnt/shared in every host: a GlusterFS volume, or
# with SHARED `sshfs` a mount of sshfs, on which locks do not reach other hosts. The checkout's tracked
# files are copied to /mnt/shared/vcsoup, and are what `exec` imports. The network, 10.77.0.0/24, is not
# reachable from this host, nor this host from it. Every host also has an interface docker0, with the
# same address on each, as machines with containers have.
#
# It needs root, Linux namespaces, FUSE, a loop device, and Debian's glusterfs-server, glusterfs-client,
# iproute2, e2fsprogs, with sshfs also openssh-server. All is in one folder, $HOSTS_DIR or
# /tmp/vcsoup-hosts; the disk of `files` is a file there of $HOSTS_DISK (4G).
set -euo pipefail

dir=${HOSTS_DIR:-/tmp/vcsoup-hosts}
root=$(cd "$(dirname "$0")/.." && pwd)
shared=/mnt/shared
inside=/run/hosts # where hosts see $dir
hidden=(/mnt /run /dev/shm /tmp) # the last is where $dir is
network=10.77.0
PATH=$PATH:/usr/sbin:/sbin
replace='' # whether `enter` takes this process's place

say() { echo "hosts: $*" >&2; }
die() {
    say "$@"
    exit 1
}

# ---- Programs, hosts and their processes ----

install_packages() {
    local packages=() each
    declare -A package=([ip]=iproute2 [mkfs.ext4]=e2fsprogs)
    if [[ $1 == gluster ]]; then
        package+=([glusterd]=glusterfs-server [glusterfs]=glusterfs-client)
    else
        package+=([sshfs]=sshfs [sshd]=openssh-server)
    fi
    for each in "${!package[@]}"; do
        command -v "$each" >/dev/null || packages+=("${package[$each]}")
    done
    [[ ${#packages[@]} -gt 0 ]] || return 0
    command -v apt-get >/dev/null || die "install ${packages[*]}, as Debian calls them, and run this again"
    say "installing ${packages[*]}"
    { apt-get update && DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${packages[@]}"; } >"$dir/apt.log" 2>&1 ||
        die "apt-get failed: $(tail -n 3 "$dir/apt.log")"
}

names() {
    local i
    echo files control
    for ((i = 1; i <= $(<"$dir/count"); i++)); do echo "h$i"; done
}

# The last part of a host's address.
number() {
    case $1 in
        files) echo 101 ;;
        control) echo 102 ;;
        *) echo "${1#h}" ;;
    esac
}

check_name() {
    [[ -e $dir/ours ]] || die "no hosts are up; \`$0 up 3\` starts them"
    [[ " $(names | tr '\n' ' ')" == *" $1 "* ]] || die "no host $1; there are: $(names | tr '\n' ' ')"
}

# The process that all others of a host descend from, as this host numbers it.
pid_of() {
    local pid
    pid=$(cat "$dir/$1/pid" 2>/dev/null) || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "live $1 $dir" && echo "$pid"
}

enter() {
    local host=$1 pid
    shift
    pid=$(pid_of "$host") || die "$host is lost; \`$0 boot $host\` starts it anew"
    ${replace:+exec} nsenter --target "$pid" --net --uts --ipc --mount --pid --wd=/ "$@"
}

in_switch() { nsenter --target "$(pid_of switch)" --net "$@"; }

# ---- A host's life ----

# start HOST: its first process, in namespaces of its own. The switch has only a network.
start() {
    local host=$1 spaces=(--net) outer pid=''
    mkdir -p "$dir/$host/log"
    [[ $host == switch ]] || spaces+=(--mount --uts --ipc --pid)
    setsid unshare "${spaces[@]}" --fork --kill-child -- "$0" live "$host" "$dir" \
        </dev/null >>"$dir/$host/log/host.log" 2>&1 &
    outer=$!
    for ((i = 0; i < 100; i++)); do
        # The list of children ends without a newline.
        read -r pid <"/proc/$outer/task/$outer/children" 2>/dev/null || true
        if [[ $pid ]]; then
            echo "$pid" >"$dir/$host/pid"
            pid_of "$host" >/dev/null && break
        fi
        sleep 0.05
    done
    pid_of "$host" >/dev/null || die "$host does not start: $(tail -n 3 "$dir/$host/log/host.log")"
}

# live HOST: what the first process does, in the host. Its children are those that others left.
live() {
    local host=$1
    trap '' HUP INT
    if [[ $host != switch ]]; then
        hostname "$host"
        mount_own "$host"
    fi
    touch "$dir_inside/$host/up"
    while :; do
        sleep 3600 &
        wait || true
    done
}

mount_own() {
    local stage=$dir/$1/stage each
    mount -t proc proc /proc
    mkdir -p "$stage" "$dir/$1/log"
    mount -t tmpfs -o mode=755 hosts "$stage"
    for each in "${hidden[@]}"; do mkdir -p "$stage$each"; done
    chmod 1777 "$stage/tmp" "$stage/dev/shm"
    mkdir -p "$stage$inside" "$stage/run/lock" "$stage/run/sshd" "$stage$shared"
    mount --bind "$dir" "$stage$inside"
    local -a paths
    mapfile -t paths <"$dir/python-paths"
    for each in "${paths[@]}"; do
        [[ $each =~ ^(/tmp|/mnt|/run)/ && -d $each && ! -e $stage$each ]] || continue
        mkdir -p "$stage$each"
        mount --bind -o ro "$each" "$stage$each"
    done
    { echo "127.0.1.1 $1" && cat "$dir/etc-hosts"; } >"$dir/$1/etc-hosts" # as Debian installs it
    mount --bind "$dir/$1/etc-hosts" /etc/hosts
    mount --bind "$dir/$1/log" /var/log
    for each in "${hidden[@]}"; do mount --rbind "$stage$each" "$each"; done
    dir_inside=$inside
}

# The folders that the Python environment imports from.
python_paths() {
    "$root/.venv/bin/python" - <<'END'
import os, sys
print(*dict.fromkeys([sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path)]), sep="\n")
END
}

plug_in() {
    local host=$1 pid address
    pid=$(pid_of "$host")
    address=$network.$(number "$host")
    in_switch ip link add "to-$host" type veth peer name eth0 netns "$pid"
    in_switch ip link set "to-$host" master switch up
    enter "$host" sh -c "ip link set lo up
        ip address add $address/24 dev eth0 && ip link set eth0 up
        ip route add default via $network.254
        ip link add docker0 type veth peer name container0 && ip link set container0 up
        ip address add 172.17.0.1/16 dev docker0 && ip link set docker0 up"
}

boot_one() {
    start "$1"
    for ((i = 0; i < 100; i++)); do
        [[ ! -e $dir/$1/up ]] || break
        sleep 0.05
    done
    [[ -e $dir/$1/up ]] || die "$1 does not come up: $(tail -n 3 "$dir/$1/log/host.log")"
    rm "$dir/$1/up"
    [[ $1 == switch ]] || plug_in "$1"
}

boot() {
    check_name "$1"
    ! pid_of "$1" >/dev/null || die "$1 is up"
    boot_one "$1"
    if [[ $1 == files ]]; then serve; else mount_shared "$1"; fi
    [[ ! -e $dir/slurm/slurm.conf ]] || slurm_on "$1"
}

# ---- The shared folder ----

# On `files`: its disk, and what serves it.
serve() {
    [[ -e $dir/disk ]] || {
        truncate -s "${HOSTS_DISK:-4G}" "$dir/disk"
        mkfs.ext4 -q -m 0 "$dir/disk"
    }
    enter files sh -c "mkdir -p /mnt/disk && mount -o loop $inside/disk /mnt/disk && mkdir -p /mnt/disk/brick" ||
        die "files: the disk cannot be mounted"
    if [[ $(<"$dir/kind") == sshfs ]]; then serve_ssh; else serve_gluster; fi
}

serve_gluster() {
    mkdir -p "$dir/files/glusterd"
    enter files sh -c "mount --bind $inside/files/glusterd /var/lib/glusterd && mkdir -p /var/log/glusterfs &&
        glusterd --pid-file=/run/glusterd.pid" || die "files: glusterd does not start"
    for ((i = 0; i < 100; i++)); do
        enter files gluster --mode=script volume list >/dev/null 2>&1 && break
        sleep 0.2
    done
    [[ $(enter files gluster --mode=script volume list 2>&1) != shared ]] || return 0
    enter files sh -c "gluster --mode=script volume create shared transport tcp $network.101:/mnt/disk/brick force &&
        gluster --mode=script volume set shared network.ping-timeout ${HOSTS_PING_TIMEOUT:-42} &&
        gluster --mode=script volume start shared" >"$dir/files/log/volume.log" 2>&1 ||
        die "files: no volume: $(tail -n 3 "$dir/files/log/volume.log")"
}

serve_ssh() {
    local keys=$dir/files/ssh
    mkdir -p "$keys"
    [[ -e $keys/id ]] || {
        ssh-keygen -q -t ed25519 -N '' -f "$keys/id"
        ssh-keygen -q -t ed25519 -N '' -f "$keys/host"
        cp "$keys/id.pub" "$keys/authorized"
    }
    enter files "$(command -v sshd)" -h "$inside/files/ssh/host" -f /dev/null -o StrictModes=no \
        -o UsePAM=no -o PermitRootLogin=yes -o "AuthorizedKeysFile=$inside/files/ssh/authorized" \
        -o 'Subsystem=sftp internal-sftp' -o PidFile=/run/sshd.pid
}

mount_shared() {
    if [[ $(<"$dir/kind") == sshfs ]]; then
        enter "$1" sshfs "root@$network.101:/mnt/disk/brick" "$shared" -o reconnect,dev,suid \
            -o "IdentityFile=$inside/files/ssh/id,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null" \
            -o ServerAliveInterval=5,LogLevel=ERROR || die "$1: cannot mount the shared folder"
        return
    fi
    enter "$1" sh -c "mkdir -p /var/log/glusterfs &&
        glusterfs --volfile-server=$network.101 --volfile-id=shared $shared"
    for ((i = 0; i < 100; i++)); do
        enter "$1" mountpoint -q "$shared" && enter "$1" ls "$shared" >/dev/null 2>&1 && return
        sleep 0.2
    done
    die "$1: cannot mount the shared folder: $(tail -n 3 "$dir/$1"/log/glusterfs/mnt-shared.log)"
}

copy() {
    # What git tracks or would, and the merge kernel that was built here.
    (cd "$root" && { git ls-files -z --cached --others --exclude-standard && find vcsoup_dist -name '*.so' -print0; } |
        tar --null --files-from=- -cf -) |
        enter h1 sh -c "mkdir -p $shared/vcsoup $shared/home && tar -xf - -C $shared/vcsoup"
}

# shellcheck source-path=SCRIPTDIR source=hosts_services.sh
source "$root/tools/hosts_services.sh"

# ---- Commands ----

up() {
    local kind=${2:-gluster}
    [[ ${1:-} =~ ^[1-9][0-9]?$ && $kind =~ ^(gluster|sshfs)$ ]] || die "say \`$0 up 3\`, or \`$0 up 3 sshfs\`"
    [[ $(id -u) == 0 ]] || die "it needs root, for namespaces and mounts"
    [[ -e /dev/fuse ]] || die "no /dev/fuse here, so no network file system can be mounted"
    [[ -x $root/.venv/bin/python ]] || die "no $root/.venv; tools/install.sh makes it"
    [[ ! -e $dir || -e $dir/ours ]] || die "$dir is not of this script's making; set HOSTS_DIR to another folder"
    down
    mkdir -p "$dir"
    touch "$dir/ours"
    echo "$1" >"$dir/count"
    echo "$kind" >"$dir/kind"
    install_packages "$kind"
    python_paths >"$dir/python-paths"
    local host
    {
        echo '127.0.0.1 localhost'
        for host in $(names); do echo "$network.$(number "$host") $host"; done
    } >"$dir/etc-hosts"
    boot_one switch
    in_switch sh -c 'ip link add switch type bridge && ip link set switch up'
    for host in $(names); do boot_one "$host"; done
    serve
    for host in $(names); do
        [[ $host == files ]] || mount_shared "$host"
    done
    copy
}

run_in() {
    local host=$1
    shift
    # shellcheck disable=SC2016 # the variables are the host's
    enter "$host" env HOME="$shared/home" PATH="$root/.venv/bin:$PATH" PYTHONPATH="$shared/vcsoup" \
        SLURM_CONF="$inside/slurm/slurm.conf" sh -c 'cd "$0" || cd /; exec "$@"' "$shared" "$@"
}

status() {
    [[ -e $dir/ours ]] || die "no hosts are up"
    local host link
    for host in $(names); do
        link='no link'
        [[ $(in_switch ip -oneline link show "to-$host" 2>/dev/null) != *,UP,* ]] || link='linked'
        echo "$host $network.$(number "$host") $(pid_of "$host" >/dev/null && echo up || echo lost), $link"
    done
}

set_link() {
    check_name "$1"
    in_switch ip link set "to-$1" "$2"
}

# The link goes first: no other host hears that the processes ended.
lose() {
    local pid
    check_name "$1"
    pid=$(pid_of "$1") || die "$1 is lost already"
    in_switch ip link del "to-$1"
    end_process "$1" "$pid"
}

end_process() {
    kill -KILL "$2"
    for ((i = 0; i < 200; i++)); do
        pid_of "$1" >/dev/null || return 0
        sleep 0.05
    done
    die "$1: process $2 does not end"
}

down() {
    [[ -e $dir/ours ]] || return 0
    local host pid
    # `files` last: a mount whose server is gone ends slowly.
    for host in $(names | sort -r | grep -v '^files$') files switch; do
        pid=$(pid_of "$host") || continue
        end_process "$host" "$pid"
    done
    rm -rf "$dir"
}

case ${1:-} in
    up) up "${@:2}" ;;
    copy | slurm | ray | status | down) "$1" ;;
    boot | lose) "$1" "${2:?which host?}" ;;
    cut) set_link "${2:?which host?}" down ;;
    join) set_link "${2:?which host?}" up ;;
    exec)
        check_name "${2:?which host?}"
        replace=yes
        run_in "${@:2}"
        ;;
    live) # in a host; for this script alone
        dir=$3 dir_inside=$3
        live "$2"
        ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 2 ;;
esac
