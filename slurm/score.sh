#!/usr/bin/env bash
# Reads the pairs of a recipe and scores them with every reward, by Ray actors on all nodes of a Slurm
# job; ray.sh beside this file makes the Ray cluster.
#
#   sbatch --nodes=2 --ntasks-per-node=1 --cpus-per-task=32 --gpus-per-node=8 slurm/score.sh RECIPE
#
#   sbatch --nodes=4 --exclusive slurm/score.sh RECIPE      whole nodes, on CPUs
#
# How many actors there are, and the CPUs and GPUs of each, says the recipe, at each reward's `actors`.
# Two minutes before its time is over, and on `scancel --batch --signal=USR2 JOB`, the job stops, goes
# back into the queue and goes on later; it does so also when a node fails. Its exit code is that of
# `vcsoup score`. Variables (VCSOUP_SETUP and others) and logs: see environment.sh beside this file.
#
#SBATCH --job-name=vcsoup-score
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
set -euo pipefail

if [[ $# == 0 || $1 == -h || $1 == --help ]]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0"
    [[ $# -gt 0 && $1 == -* ]] || exit 2
    exit 0
fi

# Slurm runs a copy of this file; its record of the job says where the original is.
here=$(dirname "$0")
[[ -f $here/environment.sh ]] || here=$(
    scontrol show job "$SLURM_JOB_ID" --oneliner | sed -n '1s|.* Command=\(.*\)/score\.sh.*|\1|p'
)
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$here/environment.sh"
# shellcheck source-path=SCRIPTDIR source=ray.sh
source "$here/ray.sh"

job_log
set_up
start_ray
run_vcsoup score "$1" --address "$RAY_ADDRESS"
