#!/usr/bin/env bash
# Runs a stage that needs one node only, or several of them, as a Slurm job: filter, report and the
# like, but also any other on a single node.
#
#   sbatch --cpus-per-task=16 slurm/on_one_node.sh filter RECIPE
#   sbatch slurm/on_one_node.sh report RECIPE
#   sbatch --cpus-per-task=32 --gpus=8 slurm/on_one_node.sh run RECIPE
#
# Two minutes before its time is over, and on `scancel --batch --signal=USR2 JOB`, the job stops, goes
# back into the queue and resumes later; it does so also when a node fails. Its exit code is that of
# `vcsoup COMMAND`. Variables (VCSOUP_SETUP and others) and logs: see environment.sh beside this file.
#
#SBATCH --job-name=vcsoup-stage
#SBATCH --nodes=1
#SBATCH --output=vcsoup-stage-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
set -euo pipefail

needs=2 # arguments: COMMAND and RECIPE

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
run_vcsoup "$@"
