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
# back into the queue and resumes later; it does so also when a node fails. Its exit code is that of
# `vcsoup score`. Variables (VCSOUP_SETUP and others) and logs: see environment.sh beside this file.
#
#SBATCH --job-name=vcsoup-score
#SBATCH --output=vcsoup-score-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
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
# shellcheck source-path=SCRIPTDIR source=ray.sh
source "$here/ray.sh"

job_log
set_up
start_ray
run_vcsoup score "$1" --address "$RAY_ADDRESS"
