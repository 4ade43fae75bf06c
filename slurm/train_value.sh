#!/usr/bin/env bash
# Trains one value of a recipe, every method and seed, on the nodes of a Slurm job: one rank per task,
# with GPUs one task per GPU.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --time=24:00:00 \
#       slurm/train_value.sh RECIPE VALUE
#
#   sbatch --array=0-2 … slurm/train_value.sh RECIPE      task N trains value N of `vcsoup values`
#
#   sbatch --array=0-1 … slurm/train_value.sh RECIPE NAME NAME      task N trains the Nth: a value, or
#       one policy, such as policies/vc_soup/helpful/seed-0
#
#   sbatch --nodes=4 --ntasks-per-node=2 --cpus-per-task=16 …      on CPUs; set launch.threads to 16
#
# Scores and filtered sets must be made. theta_0 and reference log-probs are made where they are
# missing; with several values slurm/reference.sh does it once before, on no more than one job:
#
#   job=$(sbatch --parsable … slurm/reference.sh RECIPE)
#   sbatch --dependency=afterok:"$job" --array=0-2 … slurm/train_value.sh RECIPE
#
# Ten minutes before its time is over, and on `scancel --signal=USR2 JOB`, the job saves, goes back
# into the queue and resumes later; it does so also when a node fails. Its exit code is that of
# `vcsoup train`. Variables (VCSOUP_SETUP and others) and logs: see environment.sh beside this file.
#
#SBATCH --job-name=vcsoup-train
#SBATCH --output=vcsoup-train-%j.out
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
recipe=$1
names=("${@:2}")
[[ ${#names[@]} -gt 0 ]] || mapfile -t names < <(vcsoup values "$recipe")
task=${SLURM_ARRAY_TASK_ID:-0}
if [[ -z ${SLURM_ARRAY_TASK_ID:-} && $# != 2 ]]; then
    echo "name one VALUE, or submit with --array for ${names[*]}" >&2
    exit 2
fi
run_vcsoup train "${names[task]:?there is no task $task: ${names[*]}}" "$recipe" --launcher srun
