"""What so many prompts and seeds can show, by the errors of a pilot run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import contrasts
import numpy as np

from vcsoup_dist.files import write_atomically
from vcsoup_dist.report.comparing.finished import read_run
from vcsoup_dist.report.statistics.crossed import Errors, SeedVariance
from vcsoup_dist.report.statistics.evaluated import check_shared
from vcsoup_dist.report.statistics.methods import candidates_of, volumes_by_method
from vcsoup_dist.report.statistics.scale import choose_scale
from vcsoup_dist.report.statistics.summarise import BOOTSTRAP_SEED
from vcsoup_dist.report.statistics.volumes import prompt_shares

PROMPTS = (96, 240, 400, 489)
SEEDS = (2, 3, 5, 10)


def write(run_dir: Path, out: Path, folder: Path) -> None:
    """power.json: the smallest difference of the pilot's two methods that designs can show."""
    del out
    evaluated = read_run(run_dir, run_dir.name).evaluated
    shared = check_shared(evaluated)
    methods = dict.fromkeys(str(one.method) for one in evaluated if one.method is not None)
    volumes = volumes_by_method(
        {method: candidates_of(evaluated, method, shared) for method in methods},
        prompt_shares(shared.prompts, contrasts.RESAMPLES, BOOTSTRAP_SEED),
        choose_scale(evaluated, shared),
    )
    first, second = volumes.values()
    errors = first.errors_before(second)
    # As if the planned differences were independent: a little more than max-T asks for.
    of_one = contrasts.CONFIDENCE ** (1 / len(contrasts.EQUAL))
    found = {
        "methods": list(methods),
        "prompts": shared.prompts,
        "standard error of prompts": float(errors.prompts) ** 0.5,
        "standard error of seeds": float(errors.seeds) ** 0.5,
        "detectable": {
            f"{prompts} prompts, {seeds} seeds": contrasts.detectable(
                _expected(errors, shared.prompts, prompts, seeds), of_one
            )
            for prompts in PROMPTS
            for seeds in SEEDS
        },
    }
    for design, difference in found["detectable"].items():
        print(f"{design:24} {difference:.3f}")
    write_atomically(folder / "power.json", json.dumps(found, indent=1) + "\n")


def _expected(errors: Errors, measured: int, prompts: int, seeds: int) -> Errors:
    """Of another number of prompts and of seeds a method."""
    methods = len(errors.of_seeds)
    of_one = errors.seeds * errors.of_seeds[0].seeds / methods  # variance of one seed
    return replace(
        errors,
        prompts=errors.prompts * measured / prompts,
        prompt_freedom=float(prompts - 1),
        of_seeds=(SeedVariance(of_one / seeds, np.zeros(()), seeds),) * methods,
    )
