"""What `vcsoup check` says of Slurm: whether the jobs of `vcsoup submit` ask for what they need."""

from __future__ import annotations

from vcsoup_dist.plan.job_warnings import job_warnings
from vcsoup_dist.plan.site import load_site
from vcsoup_dist.recipe import Recipe


def check_slurm(recipe: Recipe) -> list[str]:
    """Warnings where a recipe or a site file is made for Slurm; UserError for the site file's."""
    site = load_site()
    if not (recipe.launch.slurm or site.sbatch or site.stages):
        return []
    return job_warnings(recipe, site)
