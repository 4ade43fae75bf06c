#!/usr/bin/env bash
# Writes soups on CPU nodes, by one process or by as many ranks as a job array has tasks. Without an
# array one job does all:
#
#   sbatch --cpus-per-task=8 --mem=4G slurm/merge.sh RECIPE
#
# With an array task R writes the share of rank R, and a job that depends on it publishes the soups:
#
#   job=$(sbatch --parsable --array=0-7 --cpus-per-task=8 --mem=4G slurm/merge.sh RECIPE)
#   sbatch --dependency=afterok:"$job" slurm/merge.sh RECIPE --finalise --world-size 8
#
# Checkpoints without a recipe are merged alike; all arguments are those of `vcsoup merge`:
#
#   sbatch --array=0-7 … slurm/merge.sh POLICY... --grid 0.1 --out OUT
#   sbatch --dependency=afterok:"$job" slurm/merge.sh POLICY... --grid 0.1 --out OUT --finalise
#
# Ranks that failed are submitted again with the number of all: --array=3,5 … --world-size 8. Ranks
# share weights files, so give each one at least: soup.shard_size in the recipe, or --shard-size.
#
# A rank holds the recipe's soup.memory, or --memory (1 GiB by default), whatever the model's size; the
# rest of --mem is for Python and the page cache.
#
# Two minutes before its time is over, and on `scancel --batch --signal=USR2 JOB`, a job stops, goes back
# into the queue and resumes later; it does so also when a node fails. Its exit code is that of
# `vcsoup merge`. Variables (VCSOUP_SETUP and others) and logs: see environment.sh beside this file.
#
#SBATCH --job-name=vcsoup-merge
#SBATCH --output=vcsoup-merge-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
set -euo pipefail

needs=1 # arguments: RECIPE or POLICY...

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
arguments=("$@")
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    arguments+=(--rank "$SLURM_ARRAY_TASK_ID")
    if [[ " $*" != *" --world-size"* ]]; then
        # shellcheck disable=SC2153 # Slurm sets them
        if ((SLURM_ARRAY_TASK_MIN > 0 || SLURM_ARRAY_TASK_MAX >= SLURM_ARRAY_TASK_COUNT)); then
            echo "this array has not all ranks from 0 on: add --world-size, the number of all" >&2
            exit 2
        fi
        arguments+=(--world-size "$SLURM_ARRAY_TASK_COUNT")
    fi
fi
# Without a recipe there is no run directory.
[[ " $*" != *" --out"* ]] || VCSOUP_RUN_DIR=
run_vcsoup merge "${arguments[@]}"
