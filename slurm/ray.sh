# shellcheck shell=bash
# Sourced after environment.sh: `start_ray` makes a Ray cluster of the nodes of the job, for scripts
# whose actors run on all of them. Every node is a Ray node, a step of its own, with all CPUs and GPUs
# that the job has there. The first node, that of the batch script, is the head.
#
# Ports are free ones and files are in a folder of Ray's own in /tmp (or in $TMPDIR, where that is
# short), so that several jobs may share a host. Only who knows the job's random token is let in.
# What each Ray node says is in the log folder, NAME-JOB[_TASK]-ray-NODE-RESTART.log.
#
# All nodes must have joined within ten minutes. Later a lost node costs time only, unless it is the
# first: then the job fails, and resumes when it is submitted again.

declare -A ray_steps=()                                 # process of srun -> node
on_a_node=(ray_node end_ray asked_to_end leave_nothing) # functions that srun runs there

# end_ray PROCESS FOLDER: end it; does not wait. It is asked every second, since it may lose a TERM
# while it starts. Before it has made its folder it has started nothing, and is killed.
end_ray() {
    [[ -e $2/ray ]] || kill -KILL "$1" 2>/dev/null || true
    (while kill "$1" 2>/dev/null; do sleep 1; done) &
}

# What ray_node does when it is asked to end, with its own variables. Slurm may kill it a few seconds
# later, so the folder goes at once.
asked_to_end() {
    [[ ! $asked ]] || return 0
    asked=yes
    [[ ! $ray ]] || end_ray "$ray" "$folder"
    rm -rf "$folder"
}

# The end of ray_node: what Ray left running would make its folder again.
leave_nothing() {
    [[ $folder ]] || return 0
    while pkill -KILL -f -- "$folder" 2>/dev/null; do sleep 0.1; done
    rm -rf "$folder"
}

# ray_node ROLE CLIENT_PORT: one Ray node, a `head` or a `worker`, until TERM or USR1 asks it to end.
ray_node() {
    local base=${TMPDIR:-/tmp} asked='' ray='' code options name
    [[ ${#base} -le 18 ]] || base=/tmp # Ray's sockets are below it, and their paths have 107 at most
    # These come to all processes of the step. USR2 is the command's to obey, USR1 ours.
    trap '' USR2
    # Set once: bash loses a request that comes while it sets a trap.
    folder='' # not local: the function ends before the traps
    trap leave_nothing EXIT
    trap asked_to_end TERM USR1
    folder=$(trap '' TERM USR1 && mktemp -d "$base/vcsoup-ray-XXXXXX")
    [[ $folder ]] || exit 1
    # Ray opens its folder to all users, and this one around it is closed.
    options=(
        --block --temp-dir="$folder/ray" --node-name="$SLURMD_NODENAME"
        --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
        --dashboard-agent-listen-port=0 # any; the other ports are so by themselves
        --object-store-memory=268435456 # only paths and counts travel between actors
        --include-log-monitor=false     # nobody asks for the actors' output
    )
    if [[ $1 == head ]]; then
        options+=(
            --head --node-ip-address="${RAY_ADDRESS%:*}" --port="${RAY_ADDRESS##*:}"
            --ray-client-server-port="$2" --include-dashboard=false --no-monitor
            # No idle process per CPU.
            --system-config='{"enable_worker_prestart": false, "prestart_worker_first_driver": false}'
        )
    else
        options+=(--address="$RAY_ADDRESS")
        until [[ $asked ]] || (: <"/dev/tcp/${RAY_ADDRESS/://}") 2>/dev/null; do sleep 0.5; done
    fi
    # Libraries in an actor would take it for a rank of this step.
    for name in $(compgen -e); do
        [[ ! $name =~ ^(SLURM|SRUN|PMI|PMIX)_ ]] || unset "$name"
    done
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # its actors have ended, or are to end now
    [[ ! $asked ]] || exit 0
    (trap '' USR1 && exec ray start "${options[@]}") &
    ray=$!
    [[ ! $asked ]] || end_ray "$ray" "$folder"
    # A request that comes just before a `wait` is seen when that ends, so none is for long.
    while kill -0 "$ray" 2>/dev/null; do
        [[ ! $asked ]] || rm -rf "$folder" # Ray may have made it again
        sleep 1 &
        wait "$!" || true
    done
    code=0
    wait "$ray" || code=$?
    if [[ $asked ]]; then
        echo "== $(date +%FT%T) Ray on $SLURMD_NODENAME ended as it was asked to"
    else
        echo "== $(date +%FT%T) Ray on $SLURMD_NODENAME ended with exit code $code"
        return "$code"
    fi
}

# nodes_of LIST: its nodes, one a line. `scontrol show hostnames` would not tell them from what a site
# prints beside them.
nodes_of() {
    scontrol show node "$1" --oneliner | sed -n 's/^NodeName=\([^ ]*\) .*/\1/p'
}

# gpus_of_nodes: `NODE COUNT`, the GPUs that the job has on each node, which may differ.
gpus_of_nodes() {
    local names kinds kind count
    while read -r names kinds; do
        count=0
        for kind in ${kinds//,/ }; do # such as gpu:2 or gpu:h100:2
            [[ $kind != gpu:* ]] || count=$((count + ${kind##*:}))
        done
        nodes_of "$names" | sed "s/$/ $count/"
    done < <(
        scontrol show job --details "$(job_name)" |
            sed -n 's/([^)]*)//g;s/^ *Nodes=\([^ ]*\) .* GRES=\(.*\)/\1 \2/p'
    )
}

# start_ray: start the cluster, wait until it is whole, and export RAY_ADDRESS. It ends with this
# shell, or by stop_ray.
start_ray() {
    local nodes peer address client node count role step container waiter
    local -A gpus=() # node -> option of srun for all its GPUs
    # srun would ask for the whole job's GPUs on one node, or for one task's share of the node.
    unset SLURM_CPUS_PER_TASK SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_TRES SLURM_TRES_PER_TASK \
        SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_SOCKET SLURM_GPUS_PER_TASK
    while read -r node count; do
        [[ $count == 0 ]] || gpus[$node]=--gpus=$count
    done < <(gpus_of_nodes)
    eval "container=($VCSOUP_CONTAINER)"
    step=(
        srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --gpu-bind=none --cpu-bind=none
        --mpi=none --export=ALL "${container[@]}"
    )
    mapfile -t nodes < <(nodes_of "$SLURM_JOB_NODELIST")
    peer=$(scontrol show node "${nodes[-1]}" --oneliner | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    address=$(python3 -P -m vcsoup_dist.launch.ray_nodes head "$peer")
    read -r RAY_ADDRESS client <<<"$address"
    RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    export RAY_ADDRESS RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
    trap stop_ray EXIT
    role='head'
    for node in "${nodes[@]}"; do
        "${step[@]}" --nodelist="$node" ${gpus[$node]:+"${gpus[$node]}"} \
            --output="$(log_of "ray-$node")" --open-mode=append \
            bash -c "$(declare -f "${on_a_node[@]}"); ray_node $role $client" </dev/null &
        ray_steps[$!]=$node
        role='worker'
    done
    # The command must have the same Python and Ray as its actors.
    local here=()
    if [[ ${#container[@]} -gt 0 ]]; then
        node=$SLURMD_NODENAME
        here=("${step[@]}" --nodelist="$node" ${gpus[$node]:+"${gpus[$node]}"})
        # shellcheck disable=SC2034 # environment.sh uses it
        vcsoup=("${here[@]}" python3 -P -m vcsoup_dist.cli)
    fi
    "${here[@]}" python3 -P -m vcsoup_dist.launch.ray_nodes wait "$RAY_ADDRESS" "${#nodes[@]}" &
    waiter=$!
    wait -n "$waiter" "${!ray_steps[@]}" || true
    if kill -0 "$waiter" 2>/dev/null; then # so it was a Ray node that ended
        kill "$waiter"
        say_which_ended
        exit 2
    fi
    wait "$waiter" || exit 2
    echo "== $(date +%FT%T) Ray runs on ${#nodes[@]} nodes, its head at $RAY_ADDRESS"
}

say_which_ended() {
    local pid node log
    for pid in "${!ray_steps[@]}"; do
        kill -0 "$pid" 2>/dev/null && continue
        node=${ray_steps[$pid]}
        log=$(log_of "ray-$node")
        if [[ -e $log ]]; then
            echo "== Ray on $node has ended; the end of $log:"
            tail -n 5 "$log"
        else
            echo "== Ray on $node has not started; srun says why, above"
        fi
    done >&2
}

# stop_ray: end the cluster's own steps, on every node.
stop_ray() {
    local i pids=("${!ray_steps[@]}")
    [[ ${#pids[@]} -gt 0 ]] || return 0
    ray_steps=()
    for ((i = 0; i < 200; i++)); do
        # srun hands it on. Again after two seconds: a node that has only just started may lose it.
        ((i % 20)) || kill -USR1 "${pids[@]}" 2>/dev/null || true
        kill -0 "${pids[@]}" 2>/dev/null || return 0
        sleep 0.1
    done
    kill "${pids[@]}" 2>/dev/null || true # srun has the step killed
    wait "${pids[@]}" || true
}

# shellcheck disable=SC2034 # environment.sh uses it
at_end=stop_ray
