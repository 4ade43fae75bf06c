#!/usr/bin/env bash
# Makes what all values of a recipe share, theta_0 (where the recipe has `sft`) and the reference
# log-probs, on the nodes of a Slurm job: one rank per task, with GPUs one task per GPU.
#
#   sbatch --nodes=1 --ntasks-per-node=8 --gpus-per-node=8 slurm/reference.sh RECIPE
#
# The pairs must have been read (`vcsoup score`). Stopped or failed, it does as train_value.sh does.
# Variables (VCSOUP_SETUP and others) and logs: see environment.sh beside this file.
#
#SBATCH --job-name=vcsoup-reference
#SBATCH --output=vcsoup-reference-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@600
set -euo pipefail

needs=1 # arguments: RECIPE

# The prologue of every script here: environment.sh is where VCSOUP_SLURM says, beside this file, of which
# Slurm runs a copy, beside what was submitted, or where vcsoup_dist is installed.
here=${VCSOUP_SLURM:-$(dirname "$0")}
place=$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=//p') || true
until grep -qs '^run_vcsoup()' "$here/environment.sh"; do
    if [[ $place == */* ]]; then
        place=${place%/*} # what follows the folder is the file's name and arguments
        here=$place
    elif [[ $place != installed ]]; then
        place=installed
        here=$(
            set +u
            eval "${VCSOUP_SETUP:-}" >&2
            "$(dirname "$(command -v vcsoup)")/python" -P -c \
                'import vcsoup_dist as v; print(v.__path__[0] + "/slurm")' 2>/dev/null
        ) || true
    else
        echo "no environment.sh of vcsoup_dist beside this script, a copy: export VCSOUP_SLURM, the" \
            "folder slurm/ from which it was copied" >&2
        exit 2
    fi
done
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$here/environment.sh"

job_log
set_up
run_vcsoup reference "$1" --launcher srun
