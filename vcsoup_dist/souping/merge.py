"""`vcsoup merge` as a function: policies in, soups out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log
from vcsoup_dist.souping.arguments import Folder, as_path, as_paths, as_rows
from vcsoup_dist.souping.expected_time import expected_seconds
from vcsoup_dist.souping.grids import (
    distinct_random_weights,
    simplex_grid,
    validate_weights,
    weights_name,
)
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.options import MergeOptions
from vcsoup_dist.souping.output.state import missing_ranks, missing_soups, publish_soups
from vcsoup_dist.souping.output.write import MergeReport, write_soups
from vcsoup_dist.souping.plan import plan_merge
from vcsoup_dist.souping.progress_text import missing_line, plan_lines, report_line
from vcsoup_dist.souping.resources import check_disk
from vcsoup_dist.souping.verify import verify_soups

Row = tuple[float, ...]


def merge(
    policies: Sequence[Folder],
    *,
    out: Folder,
    weights: Sequence[float] | Sequence[Sequence[float]] | None = None,
    grid: float | None = None,
    random: int | None = None,
    seed: int = 0,
    extrapolate: bool = False,
    config: Folder | None = None,
    finalise: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    sample: float = 1.0,
    **options: Any,
) -> MergeReport | None:
    """Write linear soups of checkpoints, streaming every input once; None for a dry run.

    policies: N Hugging Face directories (safetensors or `.bin`) or DeepSpeed checkpoints;
    out: the soup's directory, or with several soups the one in which each gets a directory named
    by its weights; weights: K rows of N numbers, or one row; grid: step of the simplex grid
    instead; random: how many draws by `seed` from the uniform distribution on the simplex instead;
    extrapolate: allow weights outside [0, 1]; config: a mergekit YAML instead of policies and
    weights; finalise: only publish what all ranks have written; dry_run: only say what would be
    done; verify: compare the soups with their sources afterwards, a `sample` of all chunks;
    options: fields of `MergeOptions`, of which dtype is "bf16", "fp16", "fp32" or "fp64".

    The same call resumes a merge that was killed, and does nothing where all is made. UserError for
    whatever a person can fix, TypeError for an argument of another type.
    """
    folders, target = as_paths(policies, "policies"), as_path(out, "out")
    given = None if weights is None else as_rows(weights, "weights")
    settings = MergeOptions.of(**options)
    if config is not None:
        if folders or given or grid is not None or random is not None or settings.base is not None:
            raise UserError("--config names policies, weights and base; give no others")
        from vcsoup_dist.souping.mergekit_config import read_mergekit_config  # imports pydantic

        folders, rows, settings = read_mergekit_config(as_path(config, "config"), settings)
    else:
        rows = _rows(len(folders), given, grid, random, seed)
        for row in rows:
            validate_weights(row, extrapolate=extrapolate, any_sum=settings.base is not None)
    if not 0 < sample <= 1:
        raise UserError(f"--sample is a share, above 0 and up to 1, got {sample}")
    inside = grid is not None or random is not None or len(rows) > 1
    run = _prepare(folders, rows, target, settings, inside)
    if finalise:
        return _finalise(run)
    for line in plan_lines(run):
        log.info("%s", line)
    if dry_run:
        _estimate(run, target)
        return None
    report = write_and_log(run, target)
    if not report.finished:
        log.info("other ranks are not done; the last one publishes, or --finalise does")
    elif verify:
        _verify(run, sample, seed)
    return report


def write_and_log(run: MergeRun, out: Path) -> MergeReport:
    """Write the soups of a run, and log what that took."""
    began = time.monotonic()
    report = write_soups(run)
    if report.soups:
        log.info("%s", report_line(report, time.monotonic() - began))
    else:
        log.info("nothing to do: %s is made of just this", out)
    return report


def policy_names(policies: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart: `helpful`, or `helpful-seed-0`."""
    parts = [[each for each in path.absolute().parts if each != "/"] for path in policies]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["-".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            # They are shown on one line each, and two may differ in what cannot be shown.
            shown = ["".join(c if c.isprintable() else "_" for c in name) for name in names]
            once = len(set(shown)) == len(shown)
            return shown if once else [f"{i} {name}" for i, name in enumerate(shown, start=1)]
    raise UserError("the same policy is named twice; give it once, with the sum of its weights")


def _rows(
    policies: int, weights: list[Row] | None, grid: float | None, random: int | None, seed: int
) -> list[Row]:
    if not policies:
        raise UserError("a merge needs policies, or a --config that names them")
    if sum(given is not None for given in (weights, grid, random)) != 1:
        raise UserError("give one of --weights, --grid, --random and --config")
    if grid is not None:
        return simplex_grid(policies, grid)
    if random is not None:
        return distinct_random_weights(policies, random, seed)
    for row in weights or ():
        if len(row) != policies:
            raise UserError(f"{len(row)} weights for {policies} policies: {list(row)}")
    return weights or []


def _prepare(
    policies: Sequence[Path], rows: Sequence[Row], out: Path, options: MergeOptions, inside: bool
) -> MergeRun:
    soups = {weights_name(row) if inside else out.absolute().name: row for row in rows}
    if len(soups) < len(rows):
        raise UserError("two soups have the same weights to six decimals; give one of them")
    plan = plan_merge(policies, soups, policy_names(policies), options)
    run = MergeRun.into(out, plan, options, inside=inside)
    run.require_outside([*policies, options.base, options.model])
    return run


def _verify(run: MergeRun, sample: float, seed: int) -> None:
    found = verify_soups(run, sample=sample, seed=seed)
    log.info(
        "verified: %d tensors, %.3f GB of soups equal the sums of their sources",
        found.tensors,
        found.nbytes / 1e9,
    )


def _estimate(run: MergeRun, out: Path) -> None:
    missing = run.of_soups(missing_soups(run))
    if not missing.plan.soups:
        log.info("nothing to do: %s is made of just this", out)
        return
    check_disk(missing.plan, run.work)
    seconds = expected_seconds(missing)
    log.info("expected  %.0f s, by a measured sample; nothing was kept", seconds)


def _finalise(run: MergeRun) -> MergeReport:
    if not publish_soups(run):
        if not run.work.is_dir():
            raise UserError(f"{run.work}: there is nothing to finalise")
        missing = missing_ranks(run)
        raise UserError(f"{run.work}: {missing_line(missing, run.options.world_size)}")
    return MergeReport(tuple(run.plan.soups), finished=True)
