#!/usr/bin/env bash
# A real Slurm of two nodes on this host, for trying and testing: Debian's slurm-wlm and munge.
#
#   tools/slurm_cluster.sh up        install what is missing (as root), start it, wait until it works
#   eval "$(tools/slurm_cluster.sh env)"      point sbatch, srun and squeue of this shell to it
#   tools/slurm_cluster.sh status
#   tools/slurm_cluster.sh down      cancel its jobs, stop it, remove its folder
#
# Configuration, keys, state, pid files and logs are in one folder, $SLURM_CLUSTER_DIR or
# /tmp/vcsoup-slurm-USER; ports and the munge socket are its own, so a Slurm or munge that runs here
# already is neither used nor touched. It needs no systemd. Both nodes offer 4 cores and 2 GPUs each,
# whatever the host has: its GPUs are names without a device, to see which job would get which.
set -euo pipefail

dir=${SLURM_CLUSTER_DIR:-/tmp/vcsoup-slurm-$(id -un)}
cpus=4 # of each node
daemons=(slurmd-n1 slurmd-n2 slurmctld munged)
export SLURM_CONF=$dir/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

say() { echo "slurm_cluster: $*" >&2; }
die() {
    say "$@"
    exit 1
}

# The pid in a pid file, where that process is the one started from this folder.
pid_of() {
    local pid
    pid=$(cat "$dir/run/$1.pid" 2>/dev/null) || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$dir/" && echo "$pid"
}

install_packages() {
    local program
    for program in slurmctld slurmd munged srun; do
        command -v "$program" >/dev/null && continue
        if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
            die "no $program here; install slurm-wlm and munge (Debian, Ubuntu: apt-get install" \
                "--no-install-recommends slurm-wlm munge) and run this again"
        fi
        say "installing slurm-wlm and munge"
        { apt-get update && DEBIAN_FRONTEND=noninteractive \
            apt-get install --yes --no-install-recommends slurm-wlm munge; } >"$dir/log/apt.log" 2>&1 ||
            die "apt-get failed: $(tail -n 3 "$dir/log/apt.log")"
        return
    done
}

# The first of three ports in a row on which nothing listens.
free_ports() {
    local port i
    for ((port = 17000; port < 18000; port += 10)); do
        for i in 0 1 2; do
            (: <"/dev/tcp/127.0.0.1/$((port + i))") 2>/dev/null && continue 2
        done
        echo "$port" && return
    done
    die "no free ports between 17000 and 18000"
}

configure() {
    local port
    port=$(free_ports)
    echo 'CgroupPlugin=autodetect' >"$dir/cgroup.conf"
    : >"$dir/plugstack.conf"
    ln -sf /dev/null "$dir/gpu0" && ln -sf /dev/null "$dir/gpu1"
    echo "Name=gpu File=$dir/gpu[0-1]" >"$dir/gres.conf"
    cat >"$SLURM_CONF" <<END
ClusterName=vcsoup
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
PlugStackConfig=$dir/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
JobRequeue=1
MaxArraySize=1001
MaxJobCount=1000
KillWait=2
SlurmdTimeout=20
ReturnToService=2
NodeName=n[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=$cpus RealMemory=100000 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

start_munge() {
    local as=()
    mkdir -p "$dir/munge"
    [[ -f $dir/munge/key ]] || head -c 128 /dev/urandom >"$dir/munge/key"
    chmod 600 "$dir/munge/key"
    chmod 755 "$dir/munge"
    if [[ $(id -u) == 0 ]]; then
        chown -R munge: "$dir/munge"
        as=(setpriv --reuid munge --regid munge --clear-groups)
    fi
    "${as[@]}" "$(command -v munged)" --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
        --pid-file="$dir/munge/munged.pid" --log-file="$dir/munge/log" \
        --seed-file="$dir/munge/seed" --num-threads=2
    ln -sf "$dir/munge/munged.pid" "$dir/run/munged.pid"
}

runs() {
    local each
    for each in "${daemons[@]}"; do
        pid_of "$each" >/dev/null || return 1
    done
}

start() {
    mkdir -p "$dir"/{run,log,state}
    chmod 755 "$dir"
    touch "$dir/ours"
    install_packages
    configure
    start_munge
    slurmctld -f "$SLURM_CONF" -i
    local node
    for node in n1 n2; do
        slurmd -f "$SLURM_CONF" -N "$node"
    done
}

up() {
    if [[ -e $dir && ! -e $dir/ours ]]; then
        die "$dir is not of this script's making; set SLURM_CLUSTER_DIR to another folder"
    fi
    runs || {
        down # what a killed cluster left: its nodes may stay down, its jobs would start again
        start
    }
    for ((i = 0; i < 300; i++)); do
        [[ $(sinfo --noheader --Node --format=%T 2>/dev/null | sort -u) =~ ^(idle|mixed|allocated)$ ]] &&
            return
        sleep 0.2
    done
    die "the nodes do not come up; see $dir/log: $(tail -qn 2 "$dir"/log/slurm*.log)"
}

status() {
    local each missing=0
    for each in "${daemons[@]}"; do
        pid_of "$each" >/dev/null || { say "$each does not run" && missing=1; }
    done
    [[ $missing == 0 ]] && sinfo --Node --long && squeue
}

down() {
    [[ -e $dir/ours ]] || return 0
    local each pid
    if pid_of slurmctld >/dev/null; then
        scancel --quiet --partition=all || true
        # A job that is completing is listed until its last process is gone.
        for ((i = 0; i < 100; i++)); do
            [[ $(squeue --noheader --format=x 2>&1) ]] || break
            sleep 0.2
        done
    fi
    for each in "${daemons[@]}"; do
        pid=$(pid_of "$each") || continue
        kill "$pid"
        for ((i = 0; i < 100; i++)); do
            pid_of "$each" >/dev/null || continue 2
            sleep 0.1
        done
        kill -KILL "$pid"
    done
    rm -rf "$dir"
}

case ${1:-} in
    up | status | down) "$1" ;;
    env) echo "export SLURM_CONF=$SLURM_CONF" ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 2 ;;
esac
