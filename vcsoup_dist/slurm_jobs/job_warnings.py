"""What the jobs of a run would hold in vain, or lack, by the options of the recipe and the site."""

from __future__ import annotations

import re

from vcsoup_dist.pipeline.stages import jobs
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.sbatch_options import SbatchOptions, is_known
from vcsoup_dist.slurm_jobs.jobs import options_of
from vcsoup_dist.slurm_jobs.site import Site


def job_warnings(recipe: Recipe, site: Site) -> list[str]:
    """One line for each thing that looks wrong."""
    options = {name: options_of(job, recipe, site) for name, job in jobs().items()}
    of_ranks = [name for name, job in jobs().items() if job.runs == "ranks"]
    of_actors = [name for name, job in jobs().items() if job.runs == "actors"]
    warnings = []
    for stage in of_ranks:
        held, ranks = gpus_held(options[stage]), ranks_of(options[stage], recipe.launch.ranks)
        if held and held != ranks:
            vain = "hold GPUs that no rank uses" if held > ranks else "leave ranks without one"
            warnings.append(
                f"the jobs of {stage} would have {held} GPUs and {ranks} ranks, and {vain}: set "
                f"launch.ranks to {held}, or ask for {ranks} GPUs"
            )
    with_gpus = [name for name in of_actors if gpus_held(options[name])]
    without = [name for name in of_ranks if not gpus_held(options[name])]
    if with_gpus and without:
        warnings.append(
            f"the jobs of {' and '.join(without)} ask for no GPUs, those of "
            f"{' and '.join(with_gpus)} do: give launch.slurm.train, and reference, gpus-per-node"
        )
    unknown = sorted({name for each in options.values() for name in each if not is_known(name)})
    if unknown:
        warnings.append(
            f"no option of sbatch is known by the name {', '.join(unknown)}; it must be a plugin's"
        )
    return warnings


def gpus_held(options: SbatchOptions) -> int:
    """GPUs that a job asks for on all its nodes together, the fewest where it gives a range."""
    nodes = _number(options, "nodes", 1)
    if (total := _sum(options, "gpus")) is not None:
        return total
    if (each := _sum(options, "gpus-per-node")) is not None:
        return each * nodes
    if (each := _sum(options, "gpus-per-task")) is not None:
        return each * ranks_of(options, nodes)
    found = re.findall(r"(?:^|,|/)gpu(?:[:=][A-Za-z][\w.-]*)?(?:[:=](\d+))?(?=,|$)", _gres(options))
    return sum(int(count or 1) for count in found) * nodes


def ranks_of(options: SbatchOptions, otherwise: int) -> int:
    """Tasks that a job asks for."""
    if options.get("ntasks"):
        return _number(options, "ntasks", otherwise)
    if options.get("ntasks-per-node"):
        return _number(options, "ntasks-per-node", 1) * _number(options, "nodes", 1)
    if options.get("ntasks-per-gpu") and not options.get("gpus-per-task"):
        return _number(options, "ntasks-per-gpu", 1) * max(1, gpus_held(options))
    return otherwise


def _gres(options: SbatchOptions) -> str:
    return str(options.get("gres") or "")


def _number(options: SbatchOptions, name: str, otherwise: int) -> int:
    found = re.match(r"\d+", str(options.get(name) or ""))
    return int(found[0]) if found else otherwise


def _sum(options: SbatchOptions, name: str) -> int | None:
    """Of `8`, `h100:8` or `a100:2,h100:6`; None where the option is not given."""
    given = options.get(name)
    if given is None or given is False:
        return None
    return sum(int(count) for count in re.findall(r"(\d+)(?=,|$)", str(given)))
