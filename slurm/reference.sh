#!/usr/bin/env bash
# Makes what all values of a recipe share, theta_0 (where the recipe has a `warmup`) and the reference
# log-probs, on the nodes of a Slurm job: one rank per task, with GPUs one task per GPU.
#
#   sbatch --nodes=1 --ntasks-per-node=8 --gpus-per-node=8 slurm/reference.sh RECIPE
#
# The pairs must have been read (`vcsoup score`). Stopped or failed, it does as train_value.sh does.
# Variables (VCSOUP_SETUP and others) and logs: see environment.sh beside this file.
#
#SBATCH --job-name=vcsoup-reference
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@600
set -euo pipefail

if [[ $# == 0 || $1 == -h || $1 == --help ]]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0"
    [[ $# -gt 0 && $1 == -* ]] || exit 2
    exit 0
fi

# Slurm runs a copy of this file; its record of the job says where the original is.
here=$(dirname "$0")
[[ -f $here/environment.sh ]] || here=$(
    scontrol show job "$SLURM_JOB_ID" --oneliner | sed -n '1s|.* Command=\(.*\)/reference\.sh.*|\1|p'
)
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$here/environment.sh"

job_log
set_up
run_vcsoup reference "$1" --launcher srun
