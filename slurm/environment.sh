# shellcheck shell=bash
# Sourced by the scripts beside it: the environment and the life of a job that runs `vcsoup`.
#
# Variables, to be exported before sbatch or set here:
#
#   VCSOUP_SETUP      shell that puts `vcsoup` on the PATH, such as
#                     'module load cuda/12.8; source ~/vcsoup/.venv/bin/activate'
#                     'source ~/miniforge3/bin/activate vcsoup'
#   VCSOUP_RUN_DIR    the run directory, on a file system that all nodes share; by default runs/NAME
#                     beside the recipe, with the recipe's name
#   VCSOUP_LOG_DIR    where logs go, by default logs/ in the folder of sbatch; one file per start,
#                     NAME-JOB[_TASK]-NODE-RESTART.log
#   VCSOUP_TAKEOVER   seconds without a sign of life after which what a process on another node
#                     was making is taken over, by default 90; two thirds of it without the file
#                     system end a command
#   VCSOUP_SLURM      this folder, for a script that was copied to another one; not needed where
#                     `vcsoup` is on the PATH or VCSOUP_SETUP puts it there
#   VCSOUP_CONTAINER  srun options that put the ranks into a container, such as pyxis's
#                     '--container-image=/images/vcsoup.sqsh --container-mounts=/scratch'. Its
#                     `python3` needs the same vcsoup_dist; the command itself runs outside, from
#                     VCSOUP_SETUP. With Ray (score.sh, evaluate.sh) the Ray nodes are in it, and the
#                     command too: add --container-workdir with the folder of sbatch
#
# When ranks do not find each other, hang or die, export some of these as well:
#
#   NCCL_DEBUG=INFO                       what NCCL chose, and why it fails
#   NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0    the network, where a node has several; Gloo
#                                         takes the one that leads to the other nodes
#   NCCL_IB_DISABLE=1                     is it InfiniBand?
#   TORCH_DISTRIBUTED_DEBUG=DETAIL TORCH_CPP_LOG_LEVEL=INFO    PyTorch's side; slow
#   TORCH_NCCL_DESYNC_DEBUG=1             which rank is behind in which collective
#   PYTHONFAULTHANDLER=1                  the stack of a rank that crashes
#
# Every rank's log is in the run directory, logs/PRODUCT/rank-R.*; launch.hang_minutes of the
# recipe says when a step counts as hanging.

set -euo pipefail

# With fewer arguments than it needs, and for --help, the script's own head is its help.
if [[ -n ${needs:-} && ($# -lt ${needs:-} || $1 == -h || $1 == --help) ]]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0"
    [[ $# -gt 0 && $1 == -* ]] || exit 2
    exit 0
fi

VCSOUP_SETUP=${VCSOUP_SETUP:-}
VCSOUP_RUN_DIR=${VCSOUP_RUN_DIR:-}
VCSOUP_LOG_DIR=${VCSOUP_LOG_DIR:-logs}
export VCSOUP_CONTAINER=${VCSOUP_CONTAINER:-}

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "this is not a Slurm job: sbatch $0 $*; --help says more" >&2
    exit 2
fi

vcsoup=(vcsoup) # how the command is called
at_end=:        # what to do before the job goes back into the queue

# job_name: the job's number, and that of its task in an array.
job_name() {
    echo "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
}

# log_of WHO: the log of WHO in this start of the job.
log_of() {
    local name=${SLURM_JOB_NAME//[^A-Za-z0-9._+=@-]/_} # a slash would be another folder's
    echo "$VCSOUP_LOG_DIR/${name:0:100}-$(job_name)-$1-${SLURM_RESTART_COUNT:-0}.log"
}

# job_log: from here on, output goes to the log of this start of the job.
job_log() {
    local file job restart=${SLURM_RESTART_COUNT:-0}
    job=$(job_name)
    file=$(log_of "$SLURMD_NODENAME")
    mkdir -p "$VCSOUP_LOG_DIR"
    echo "$(date +%FT%T) job $job, restart $restart, on $SLURM_JOB_NODELIST: see $file"
    exec >>"$file" 2>&1
    VCSOUP_JOB_LOG=$(realpath "$file") # for `vcsoup status`
    export VCSOUP_JOB_LOG
    echo "== $(date +%FT%T) $SLURM_JOB_NAME $job, restart $restart, on $SLURM_JOB_NODELIST"
    trap requeue USR2 # until the command runs
    check_time
}

# check_time: end a job that would be asked to stop before it has done anything, and requeued, for
# ever. It cannot see a --signal on the command line of sbatch: export SBATCH_SIGNAL instead.
check_time() {
    local margin start end
    margin=${SBATCH_SIGNAL:-$(sed -n 's/^#SBATCH --signal=//p' "$0")} # such as B:USR2@600
    [[ $margin == *@* ]] || return 0
    margin=${margin##*@}
    read -r start end < <( # in seconds
        SLURM_TIME_FORMAT=%s scontrol show job "$(job_name)" --oneliner |
            sed -n 's/.* StartTime=\([0-9]*\) EndTime=\([0-9]*\) .*/\1 \2/p'
    ) || return 0 # without a limit
    ((end - start < 2 * margin)) || return 0
    echo "this job has $(((end - start) / 60)) minutes, and is asked to stop $((margin / 60)) before" \
        "their end: give it at least $((2 * margin / 60)), by --time or \`time\`" >&2
    exit 2
}

# requeue: stopped on request, the job goes back into the queue and resumes later.
requeue() {
    echo "== $(date +%FT%T) stopped on request; job $SLURM_JOB_ID goes back into the queue"
    trap '' USR2
    "$at_end"
    # Slurm ends this shell for it.
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
    echo "== it was not taken back; submit the job again to resume" >&2
    exit 75
}

# set_up: run VCSOUP_SETUP, which may use variables that are not set.
set_up() {
    set +u
    eval "$VCSOUP_SETUP"
    set -u
    command -v vcsoup >/dev/null || {
        echo "no \`vcsoup\` on the PATH of $SLURMD_NODENAME; set VCSOUP_SETUP" >&2
        exit 2
    }
}

# run_vcsoup ARGUMENT...: run the command, and end as it does, or by `requeue`.
run_vcsoup() {
    local command code asked
    "${vcsoup[@]}" "$@" ${VCSOUP_RUN_DIR:+--run-dir "$VCSOUP_RUN_DIR"} &
    command=$!
    # Slurm asks this shell, the command asks the ranks, or stops at once where none run.
    trap 'asked=yes; kill -USR2 "$command" 2>/dev/null || true' USR2
    while
        code=0 asked=
        wait "$command" || code=$?
        [[ $asked ]] # then it was the trap that ended the wait
    do :; done
    # By 140 USR2 ended it before it could listen.
    [[ $code != 140 ]] || code=75
    [[ $code != 75 ]] || requeue
    echo "== $(date +%FT%T) ended with exit code $code"
    exit "$code"
}
