# shellcheck shell=bash disable=SC2154 # the variables are those of hosts.sh
# Sourced by hosts.sh: Slurm and Ray in the hosts.

slurm() {
    check_name control
    local program
    for program in slurmctld slurmd munged; do
        command -v "$program" >/dev/null || die "no $program here; \`tools/slurm_cluster.sh up\` installs it"
    done
    mkdir -p "$dir/slurm"
    head -c 128 /dev/urandom >"$dir/slurm/key"
    chown munge: "$dir/slurm/key"
    chmod 600 "$dir/slurm/key"
    : >"$dir/slurm/plugstack.conf"
    echo 'CgroupPlugin=autodetect' >"$dir/slurm/cgroup.conf"
    cat >"$dir/slurm/slurm.conf" <<END
ClusterName=hosts
SlurmctldHost=control($network.102)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$inside/control/slurm
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
PlugStackConfig=$inside/slurm/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
JobRequeue=1
KillWait=2
SlurmdTimeout=20
ReturnToService=2
NodeName=h[1-$(<"$dir/count")] NodeAddr=$network.[1-$(<"$dir/count")] CPUs=4 RealMemory=100000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    local host
    for host in $(names); do
        [[ $host == files ]] || slurm_on "$host"
    done
    for ((i = 0; i < 300; i++)); do
        [[ $(enter control env "SLURM_CONF=$inside/slurm/slurm.conf" sinfo --noheader --Node --format=%T \
            2>/dev/null | sort -u) == idle ]] && return
        sleep 0.2
    done
    die "Slurm's nodes do not come up; see $dir/h*/log/slurmd.log and $dir/control/log/slurmctld.log"
}

slurm_on() {
    local daemon="slurmd -N $1"
    [[ $1 != files ]] || return 0
    [[ $1 != control ]] || daemon=slurmctld
    enter "$1" env "SLURM_CONF=$inside/slurm/slurm.conf" sh -c "mkdir -p /run/munge $inside/$1/slurm &&
        cp -p $inside/slurm/key /run/munge/key && chown -R munge: /run/munge && chmod 755 /run/munge &&
        setpriv --reuid munge --regid munge --clear-groups munged --key-file=/run/munge/key --num-threads=2 \
            --socket=/run/munge/socket --pid-file=/run/munge/pid --log-file=/run/munge/log --seed-file=/run/munge/seed &&
        $daemon" || die "$1: Slurm does not start"
}

ray() {
    check_name h1
    local host role
    for host in $(names); do
        [[ $host == h* ]] || continue
        role=(--address="$network.1:6379")
        [[ $host != h1 ]] || role=(--head --port=6379 --include-dashboard=false)
        run_in "$host" ray stop --force >"$dir/$host/log/ray.log" 2>&1
        run_in "$host" env RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 ray start "${role[@]}" \
            --node-name="$host" --num-cpus=2 --object-store-memory=157286400 --include-log-monitor=false \
            --disable-usage-stats >>"$dir/$host/log/ray.log" 2>&1 ||
            die "$host: Ray does not start: $(tail -n 3 "$dir/$host/log/ray.log")"
    done
    echo "$network.1:6379"
}
