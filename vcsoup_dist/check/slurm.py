"""What `vcsoup check` says of Slurm: whether the jobs of `vcsoup submit` ask for what they need."""

from __future__ import annotations

from vcsoup_dist.recipe import Recipe
from vcsoup_dist.slurm_jobs.job_warnings import job_warnings
from vcsoup_dist.slurm_jobs.site import load_site


def check_slurm(recipe: Recipe) -> list[str]:
    """Warnings where a recipe or a site file is made for Slurm; UserError for the site file's."""
    site = load_site()
    if not (recipe.launch.slurm or site.sbatch or site.stages):
        return []
    return job_warnings(recipe, site)
