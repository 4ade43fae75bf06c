#!/usr/bin/env bash
# Runs a stage that needs one node only, or several of them, as a Slurm job: filter, report and the
# like, but also any other on a single node.
#
#   sbatch --cpus-per-task=16 slurm/on_one_node.sh filter RECIPE
#   sbatch slurm/on_one_node.sh report RECIPE
#   sbatch --cpus-per-task=32 --gpus=8 slurm/on_one_node.sh run RECIPE
#
# Two minutes before its time is over, and on `scancel --batch --signal=USR2 JOB`, the job stops, goes
# back into the queue and goes on later; it does so also when a node fails. Its exit code is that of
# `vcsoup COMMAND`. Variables (VCSOUP_SETUP and others) and logs: see environment.sh beside this file.
#
#SBATCH --job-name=vcsoup-stage
#SBATCH --nodes=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
set -euo pipefail

if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0"
    [[ $# -gt 0 && $1 == -* ]] || exit 2
    exit 0
fi

# Slurm runs a copy of this file; its record of the job says where the original is.
here=$(dirname "$0")
[[ -f $here/environment.sh ]] || here=$(
    scontrol show job "$SLURM_JOB_ID" --oneliner | sed -n '1s|.* Command=\(.*\)/on_one_node\.sh.*|\1|p'
)
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$here/environment.sh"

job_log
set_up
run_vcsoup "$@"
