"""Commands that use Slurm's queue: submit, cancel."""

from __future__ import annotations

from typing import Annotated

import typer

from vcsoup_dist.cli.options import RecipeFile, RunDir
from vcsoup_dist.cli.plan import plan_run
from vcsoup_dist.progress import log


def submit(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the commands of sbatch, as a script.")
    ] = False,
) -> None:
    """Make all that is missing by a chain of Slurm jobs; submit again to resume.

    What `launch.slurm` and the site file say each job asks for: docs/slurm.md.

    Example: vcsoup submit recipe.yaml --run-dir /scratch/me/run1
    """
    from vcsoup_dist.slurm_jobs.submissions import was_submitted
    from vcsoup_dist.slurm_jobs.submit import as_script, settled_jobs, submit_jobs, try_jobs

    loaded, workspace, plan = plan_run(recipe, run_dir, make=False)
    file = recipe.resolve()
    if dry_run:  # also where there is no Slurm
        live = settled_jobs(workspace.root) if was_submitted(workspace.root) else []
        lines = as_script(file, loaded, workspace, plan, live)
    else:
        if not workspace.root.exists():  # a job that Slurm refuses leaves no folder
            try_jobs(file, loaded, workspace, plan)
        loaded, workspace, plan = plan_run(recipe, run_dir, make=True)
        lines = submit_jobs(file, loaded, workspace, plan)
    for line in lines:
        print(line)
    if not lines:
        log.info("nothing to do: %s is up to date", workspace.root)


def cancel(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Take the jobs of a run out of Slurm's queue; what they finished stays.

    Example: vcsoup cancel recipe.yaml
    """
    from vcsoup_dist.slurm_jobs.submit import cancel_jobs_of

    _, workspace, _ = plan_run(recipe, run_dir, make=False)
    ids = cancel_jobs_of(workspace)
    print(f"cancelled {', '.join(ids)}" if ids else f"no jobs of {workspace.root} in the queue")
